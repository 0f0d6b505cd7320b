"""Any dataset of images and objects with boxes, as the Hub has them."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from hf_robust_ft.data.detection import EMBEDDED_BOXES, load_detection_dataset
from hf_robust_ft.data.segmentation import digit_scenes

NAMES = ["coverall", "mask", "glove"]


def write(path, boxes, categories, typed=True, of_dicts=False):
    """A parquet file as cppe-5's: `objects` is a dict of lists, or a list of dicts."""
    images = [PILImage.fromarray(np.full((20, 30, 3), 10 * index, dtype=np.uint8)) for index in range(len(boxes))]
    kind = ClassLabel(names=NAMES) if typed else Value("int64")
    box = List(Value("float32"), length=4)
    if of_dicts:
        feature = List({"bbox": box, "category_id": kind})
        cells = [[{"bbox": b, "category_id": c} for b, c in zip(*pair, strict=True)]
                 for pair in zip(boxes, categories, strict=True)]  # fmt: skip
    else:
        feature = {"id": List(Value("int64")), "bbox": List(box), "category": List(kind)}
        cells = [{"id": list(range(len(b))), "bbox": b, "category": c} for b, c in zip(boxes, categories, strict=True)]
    features = Features({"image_id": Value("int64"), "image": Image(), "objects": feature})
    columns = {"image_id": list(range(len(boxes))), "image": images, "objects": cells}
    Dataset.from_dict(columns, features=features).to_parquet(path)
    return str(path)


BOXES = [[[1, 2, 10, 5]], [[0, 0, 30, 20], [5, 5, 4, 4]], []] * 4
CATEGORIES = [[0], [2, 1], []] * 4


@pytest.mark.parametrize("of_dicts", [False, True])
def test_a_dataset_of_the_hubs_shape_comes_as_images_and_objects_in_three_splits(tmp_path, of_dicts):
    splits = load_detection_dataset(write(tmp_path / "d.parquet", BOXES, CATEGORIES, of_dicts=of_dicts))
    assert set(splits) == {"train", "validation", "test"} and splits.class_names == NAMES
    assert sum(splits.facts["split_sizes"].values()) == 12
    found = [cell for split in splits.values() for cell in split["objects"][:]]
    key = lambda cell: (cell["bbox"], cell["category"])  # noqa: E731
    expected = [{"bbox": b, "category": c} for b, c in zip(BOXES, CATEGORIES, strict=True)]
    assert sorted(found, key=key) == sorted(expected, key=key)
    assert splits["train"][0]["image"].size == (30, 20)


def test_classes_without_names_are_numbered(tmp_path):
    splits = load_detection_dataset(write(tmp_path / "d.parquet", BOXES, CATEGORIES, typed=False))
    assert splits.class_names == ["LABEL_0", "LABEL_1", "LABEL_2"]


def test_the_embedded_boxes_are_found_by_name(monkeypatch):
    monkeypatch.setattr(digit_scenes, "SCENES", {"train": 2, "validation": 1, "test": 1})
    splits = load_detection_dataset(EMBEDDED_BOXES)
    assert splits.class_names == [str(digit) for digit in range(10)] and len(splits["train"]) == 2
    with pytest.raises(ValueError, match="is embedded and takes no"):
        load_detection_dataset(EMBEDDED_BOXES, revision="main")


BAD = [
    ([[[1, 2, 0, 5]]] * 12, [[0]] * 12, {}, "image 0 of .* has the box .*each larger than nothing"),
    ([[[1, 2, -3, 5]]] * 12, [[0]] * 12, {}, "larger than nothing"),
    ([[[1, 2, 3, 5]]] * 12, [[0]] * 12, {"label_column": "image_id"}, "'image_id' of .* holds"),
    ([[[1, 2, 3, 5]]] * 12, [[0]] * 12, {"label_column": "boxes"}, "has no column 'boxes'"),
    ([[[1, 2, 3, 5]]] * 12, [[0]] * 12, {"image_column": "image_id"}, "not images"),
]  # fmt: skip


@pytest.mark.parametrize(("boxes", "categories", "options", "sentence"), BAD)
def test_what_cannot_be_used_is_named(tmp_path, boxes, categories, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_detection_dataset(write(tmp_path / "d.parquet", boxes, categories), **options)


def test_a_category_below_zero_is_named(tmp_path):
    with pytest.raises(ValueError, match="has the category -1"):
        load_detection_dataset(write(tmp_path / "d.parquet", BOXES[:1] * 12, [[-1], *[[1]] * 11], typed=False))


def test_data_with_one_class_an_image_are_refused_with_what_to_take():
    with pytest.raises(ValueError, match=r"digits has one class an image and no boxes.*digits_boxes"):
        load_detection_dataset("digits")
