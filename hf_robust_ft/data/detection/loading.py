"""A name, Hub id or local folder -> train, validation and test splits of images and objects with boxes."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, List, Value

from hf_robust_ft.data.columns import check_columns
from hf_robust_ft.data.detection.columns import ObjectColumns, find_object_columns
from hf_robust_ft.data.detection.digit_boxes import load_digit_boxes
from hf_robust_ft.data.images import RGBImage
from hf_robust_ft.data.sources import EMBEDDED_DATASETS, common_commit, disk_errors_explained, load_source
from hf_robust_ft.data.specs import SPECS
from hf_robust_ft.data.splits import SplitSizes, canonical_names, first_split, with_all_splits

EMBEDDED_BOXES = "digits_boxes"

logger = logging.getLogger(__name__)


class BadBoxError(ValueError):
    """Objects that no detector can learn from: boxes of no size, or categories beyond the classes."""


class DetectionSplits(DatasetDict):
    """The splits with columns `image` and `objects` (`bbox`, `category`), and `facts` for the report.

    Attributes:
        class_names: by index.
        facts: `split_sizes`, and where it applies `dataset_commit`.
    """

    class_names: list[str]
    facts: dict[str, Any]


def load_detection_dataset(
    dataset_id: str,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    validation_size: float = 0.1,
    test_size: float = 0.2,
    seed: int = 0,
    require_train: bool = True,
    **load_options: object,
) -> DetectionSplits:
    """Load an object detection dataset as splits `train`, `validation` and `test`; experimental.

    Missing splits are made as for classification, but not by class. No image is decoded.

    Args:
        dataset_id: `digits_boxes` (embedded, extra `demo`), or a Hub dataset id, parquet file or folder with a column
            of images and one of objects, as `cppe-5`: lists of `bbox` [x, y, width, height] in pixels, and `category`.
        image_column: the images; found by type and name.
        label_column: the objects; found by what they hold.
        validation_size: share of train to split off, in (0, 1).
        test_size: share of train to split off, in (0, 1).
        seed: of what is split off.
        require_train: without it, a dataset of test or validation images alone is returned as it is.
        load_options: passed to `datasets.load_dataset` (`revision`, `token`, `name`, ...).

    Raises:
        ValueError: no such dataset, no train split, columns not found, boxes of no size or before the image's edge,
            categories beyond the classes, or a bad share.
        OSError: the disk is full, or the Hub does not answer.
    """
    sizes = SplitSizes(validation_size, test_size, seed)
    if dataset_id in SPECS or dataset_id in EMBEDDED_DATASETS:
        raise ValueError(
            f"{dataset_id} has one class an image and no boxes, so no model for object-detection can be trained or "
            f"measured on it. The embedded dataset with boxes is {EMBEDDED_BOXES}."
        )
    with disk_errors_explained(dataset_id, load_options.get("cache_dir")):
        source = canonical_names(_source(dataset_id, load_options))
        first = first_split(source, dataset_id, require_train)
        columns = find_object_columns(source[first].features, dataset_id, image_column, label_column)
        names = columns.class_names(source[first].features) or _numbered(source[first], columns, dataset_id)
        facts: dict[str, Any] = common_commit(source)
        source = {name: _two_columns(split, columns, names, dataset_id, name) for name, split in source.items()}
    splits = DetectionSplits(with_all_splits(source, dataset_id, sizes, by=None) if "train" in source else source)
    splits.class_names = names
    splits.facts = facts | {"split_sizes": {name: len(split) for name, split in splits.items()}}
    return splits


def _source(dataset_id: str, load_options: dict[str, Any]) -> dict[str, Dataset]:
    if dataset_id == EMBEDDED_BOXES:
        if load_options:
            raise ValueError(f"{dataset_id} is embedded and takes no {sorted(load_options)}.")
        return load_digit_boxes()
    return load_source(dataset_id, load_options)


def _objects(dataset: Dataset, columns: ObjectColumns) -> list[dict[str, list]]:
    """`bbox` and `category` of each image, whether its objects are a dict of lists or a list of dicts."""
    found = dataset.select_columns([columns.objects]).with_format("arrow")[:].to_pydict()[columns.objects]
    return [_one_dict(cell, columns) for cell in found]


def _one_dict(cell: Any, columns: ObjectColumns) -> dict[str, list]:
    if isinstance(cell, Mapping):
        return {"bbox": list(cell[columns.boxes] or ()), "category": list(cell[columns.categories] or ())}
    cells = list(cell or ())
    return {"bbox": [each[columns.boxes] for each in cells], "category": [each[columns.categories] for each in cells]}


def _numbered(dataset: Dataset, columns: ObjectColumns, dataset_id: str) -> list[str]:
    categories = _all(each["category"] for each in _objects(dataset, columns))
    if not len(categories) or categories.dtype.kind not in "iu":
        raise ValueError(
            f"The categories of {dataset_id} are no class indices (ClassLabel, or whole numbers from 0): "
            f"{categories[:3].tolist()}."
        )
    names = [f"LABEL_{index}" for index in range(int(categories.max()) + 1)]
    logger.warning("%s does not name its classes: its categories run to %d.", dataset_id, len(names) - 1)
    return names


def _all(lists: Iterable[list]) -> np.ndarray:
    return np.array([value for each in lists for value in each])


def _two_columns(dataset: Dataset, columns: ObjectColumns, names: list[str], dataset_id: str, split: str) -> Dataset:
    check_columns(dataset, (columns.image, columns.objects), dataset_id, split)
    objects = _objects(dataset, columns)
    for index, each in enumerate(objects):
        _check(each, len(names), f"image {index} of {dataset_id} ({split})")
    feature = {"bbox": List(List(Value("float32"), length=4)), "category": List(ClassLabel(names=names))}
    dataset = dataset.select_columns([columns.image])
    dataset = dataset.rename_column(columns.image, "image") if columns.image != "image" else dataset
    dataset = dataset.add_column("objects", objects, feature=feature)
    return dataset.cast_column("image", RGBImage(id=f"{dataset_id} ({split})"))


def _check(objects: dict[str, list], num_classes: int, name: str) -> None:
    boxes, categories = objects["bbox"], objects["category"]
    if len(boxes) != len(categories):
        raise BadBoxError(f"{name} has {len(boxes)} boxes and {len(categories)} categories.")
    for box, category in zip(boxes, categories, strict=True):
        if not isinstance(category, int) or not 0 <= category < num_classes:
            raise BadBoxError(
                f"{name} has the category {category!r}, and there are the classes 0..{num_classes - 1}: number them "
                "from 0."
            )
        fits = len(box) == 4 and all(np.isfinite(box)) and min(box[:2]) >= -1 and min(box[2:]) > 0
        if not fits:
            raise BadBoxError(
                f"{name} has the box {[round(value, 2) for value in box]}; boxes are [x, y, width, height] in pixels "
                "from the top left, each larger than nothing. Leave it out, or mend it."
            )
