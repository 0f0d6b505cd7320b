"""The transforms of a run in words and values, for its report and card."""

from collections.abc import Mapping
from typing import Any

from PIL import Image as PILImage

from hf_robust_ft.attacks.pixels import PixelSpace
from hf_robust_ft.data.augmentation import AUGMENTATION_WORDS
from hf_robust_ft.provenance.choices import check_choice

TRAINED_ON_THE_SAME = " Training images: the same."


def describe_transforms(
    processor: Any, augmentation: str | None = "none", known: Mapping[str, list[str]] = AUGMENTATION_WORDS
) -> dict[str, Any]:
    """What happens to an image before the model sees it, as plain JSON values.

    Args:
        processor: the checkpoint's image processor (transformers or timm's wrapper).
        augmentation: a key of `known`, for training images; None where an evaluation knows nothing of training.
        known: words for each step of each augmentation.

    Returns:
        `train` (unless that is None) and `eval`, lists of steps in words; `resize` (`shortest_edge`, or `height` and
        `width`), `crop` (`height`, `width`), `interpolation`, `mean` and `std` as values, None where the processor does
        no such thing;
        `channels` where it changes their order (2, 1, 0: to blue, green, red), whose mean and std are in that order;
        `text`, a sentence or two for a card.

    Raises:
        ValueError: unknown augmentation, or a processor that `PixelSpace.from_processor` refuses.
    """
    if augmentation is not None:
        check_choice("augmentation", augmentation, known)
    values = _timm_values(processor) if hasattr(processor, "val_transforms") else _processor_values(processor)
    evaluation = ["upright RGB (EXIF orientation applied, transparency on white)"]
    if values["resize"]:
        sides = values["resize"]
        target = f"{sides['height']} x {sides['width']}" if "height" in sides else f"shorter side {_edge(sides)}"
        evaluation.append(f"resize to {target}" + (f" ({values['interpolation']})" if values["interpolation"] else ""))
    if values["crop"]:
        evaluation.append(f"centre crop {values['crop']['height']} x {values['crop']['width']}")
    evaluation.append("pixels in [0, 1]")
    if "channels" in values:
        evaluation.append(f"channels as {' '.join('RGB'[channel] for channel in values['channels'])}")
    if values["mean"] and set(values["mean"] + values["std"]) != {0.0, 1.0}:
        evaluation.append(f"normalisation with mean {_rounded(values['mean'])} and std {_rounded(values['std'])}")
    text = f"Evaluation images: {', '.join(evaluation)}."
    if augmentation is None:
        return {"eval": evaluation, **values, "text": text}
    words = known[augmentation]
    training = [evaluation[0], *words, *evaluation[1:]]
    text += f" Training images: the same, with {', '.join(words)} before resizing." if words else TRAINED_ON_THE_SAME
    return {"train": training, "eval": evaluation, **values, "text": text}


def _processor_values(processor: Any) -> dict[str, Any]:
    def setting(switch: str, name: str) -> Any:
        return getattr(processor, name, None) if getattr(processor, switch, False) else None

    resize, crop = _sides(setting("do_resize", "size")), _sides(setting("do_center_crop", "crop_size"))
    crop_pct = getattr(processor, "crop_pct", None)
    if resize and crop_pct and "shortest_edge" in resize:  # ConvNeXt: what to crop to, if below 384
        edge = resize["shortest_edge"]
        resize = {"shortest_edge": int(edge / crop_pct)} if edge < 384 else {"height": edge, "width": edge}
        crop = {"height": edge, "width": edge} if edge < 384 else None
    resample = setting("do_resize", "resample")
    space = PixelSpace.from_processor(processor)  # settings do not tell of a second scaling or another order
    return {
        "resize": resize,
        "crop": crop,
        "interpolation": None if resample is None else PILImage.Resampling(int(resample)).name.lower(),
        **({"mean": None, "std": None} if space == PixelSpace() else space.settings()),
    }


def _timm_values(processor: Any) -> dict[str, Any]:
    """Read off the transforms that run: timm rounds and places sizes by rules of its own."""
    values: dict[str, Any] = dict.fromkeys(("resize", "crop", "interpolation", "mean", "std"))
    for transform in processor.val_transforms.transforms:
        name = type(transform).__name__
        if name.startswith("Resize"):
            values["resize"] = _sides(transform.size)
            values["interpolation"] = processor.data_config["interpolation"]
        elif name.startswith("CenterCrop"):
            values["crop"] = _sides(transform.size)
        elif name == "Normalize":
            values["mean"], values["std"] = (
                [float(value) for value in part] for part in (transform.mean, transform.std)
            )
    return values


def _sides(size: Any) -> dict[str, int] | None:
    if size is None:
        return None
    if isinstance(size, int):
        return {"shortest_edge": size}
    if isinstance(size, (list, tuple)):
        return {"height": int(size[0]), "width": int(size[-1])}
    sides = dict(size) if isinstance(size, Mapping) else dict(vars(size))
    return {name: int(value) for name, value in sides.items() if value is not None}


def _edge(sides: dict[str, int]) -> str:
    return " / ".join(str(value) for value in sides.values())


def _rounded(values: list[float]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
