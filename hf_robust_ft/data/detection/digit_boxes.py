"""The scenes of scikit-learn's digits with a box around each: real data for detection without a network."""

from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from hf_robust_ft.data.segmentation.digit_scenes import Scene, compose_splits

CLASS_NAMES = tuple(str(digit) for digit in range(10))
FEATURES = Features(
    {
        "image": Image(),
        "objects": {
            "bbox": List(List(Value("float32"), length=4)),
            "category": List(ClassLabel(names=list(CLASS_NAMES))),
        },
    }
)


def load_digit_boxes(seed: int = 0) -> dict[str, Dataset]:
    """The splits `train`, `validation` and `test` with `image` (64 x 64 RGB) and `objects`, as on the Hub.

    Objects are `bbox`, COCO's [x, y, width, height] in pixels, and `category`, the digit. The images are those of
    `digits_scenes`.

    Args:
        seed: of the digits' split and of the scenes.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    return {name: _boxed(scenes) for name, scenes in compose_splits(seed).items()}


def _boxed(scenes: list[Scene]) -> Dataset:
    objects = [
        {"bbox": [box for _, box in scene.digits], "category": [digit for digit, _ in scene.digits]} for scene in scenes
    ]
    images = [PILImage.fromarray(scene.canvas) for scene in scenes]
    return Dataset.from_dict({"image": images, "objects": objects}, features=FEATURES)
