"""Any image classification schema -> the columns `image` (upright RGB) and `label` (a `ClassLabel`)."""

import logging
from collections.abc import Iterable

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, Value

from hf_robust_ft.data.images import RGBImage

LABEL_NAMES = ("label", "labels", "fine_label", "class", "target")
STRINGS = ("string", "large_string")

logger = logging.getLogger(__name__)


def find_columns(features: Features, dataset_id: str, image: str | None, label: str | None) -> tuple[str, str]:
    """The names of the image and the label column: those given, else the only candidates.

    Raises:
        ValueError: a name that is not there, none or several candidates, or columns of the wrong type.
    """
    for name in (image, label):
        if name is not None and name not in features:
            raise ValueError(f"{dataset_id} has no column {name!r}; it has {list(features)}.")
    images = [image] if image else [name for name, feature in features.items() if isinstance(feature, Image)]
    if len(images) != 1:
        found = "no image column" if not images else f"several image columns, {images}"
        raise ValueError(f"{dataset_id} has {found} among {list(features)}. Name the one to use: image_column.")
    if not isinstance(features[images[0]], Image):
        raise ValueError(f"Column {images[0]!r} of {dataset_id} holds {features[images[0]]}, not images.")
    labels = [label] if label else [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    labels = labels or [name for name in LABEL_NAMES if name in features]
    if len(labels) != 1:
        found = "no label column" if not labels else f"several label columns, {labels}"
        raise ValueError(f"{dataset_id} has {found} among {list(features)}. Name the one to use: label_column.")
    _check_label_type(features[labels[0]], labels[0], dataset_id)
    return images[0], labels[0]


def check_columns(dataset: Dataset, names: Iterable[str], dataset_id: str, split: str) -> None:
    """Raise a ValueError where a split lacks a column that another one has."""
    for name in names:
        if name not in dataset.features:
            raise ValueError(
                f"The split {split} of {dataset_id} has no column {name!r}; it has {dataset.column_names}."
            )


def two_columns(dataset: Dataset, image: str, label: str) -> Dataset:
    """The dataset with `image` and `label` only; images decode to upright RGB."""
    dataset = dataset.select_columns([image, label])
    renames = {old: new for old, new in ((image, "image"), (label, "label")) if old != new}
    dataset = dataset.rename_columns(renames) if renames else dataset
    return dataset.cast_column("image", RGBImage())


def with_class_labels(splits: dict[str, Dataset], first: str, num_classes: int | None = None) -> dict[str, Dataset]:
    """Integer and string labels become class labels with the classes of the split `first`.

    Args:
        splits: with a column `label`.
        first: the split whose labels name the classes.
        num_classes: how many there are, if known; then integers from 1 to this number are counted from 0.

    Raises:
        ValueError: negative labels in `first`, no labels at all, or classes elsewhere that `first` lacks.
    """
    feature = splits[first].features["label"]
    if isinstance(feature, ClassLabel):
        return splits
    values = sorted({value for value in plain_labels(splits[first]) if value is not None})
    if not values:
        raise ValueError(f"No image of {first} has a label.")
    if feature.dtype in STRINGS:
        index_of = {name: index for index, name in enumerate(values)}
    elif values[0] < 0:
        raise ValueError(f"The labels of {first} hold {values[0]}: filter out unlabelled images first.")
    else:
        start = 1 if num_classes and values[0] == 1 and values[-1] == num_classes else 0
        index_of = {value: value - start for value in range(start, values[-1] + 1)}
        unused = len(index_of) - len(values)
        if unused:
            logger.warning("The labels of %s run to %d; %d classes have no image.", first, values[-1], unused)
    classes = ClassLabel(names=[str(value) for value in index_of])
    return {name: _relabelled(split, name, index_of, classes, first) for name, split in splits.items()}


def plain_labels(dataset: Dataset) -> list:
    """The label of every image as it is stored; decodes no image."""
    return dataset.with_format("arrow", columns=["label"])[:]["label"].to_pylist()


def is_labelled(dataset: Dataset, name: str, dataset_id: str) -> bool:
    """Whether every image has a class; False, and said so, if none has.

    Raises:
        ValueError: some have and some have not.
    """
    labels = plain_labels(dataset)
    unlabelled = sum(label is None or label < 0 for label in labels)
    if unlabelled == 0:
        return True
    if unlabelled < len(labels) or name == "train":
        raise ValueError(
            f"{unlabelled} of {len(labels)} images of {dataset_id} ({name}) have no label: filter them out."
        )
    logger.warning("%s (%s) has no labels: it is left out.", dataset_id, name)
    return False


def _check_label_type(feature: object, name: str, dataset_id: str) -> None:
    if isinstance(feature, ClassLabel):
        return
    dtype = feature.dtype if isinstance(feature, Value) else ""
    if dtype in STRINGS or dtype.startswith(("int", "uint")):
        return
    several = "" if dtype else " Several labels an image (multi-hot or a list) are not classification."
    raise ValueError(
        f"Column {name!r} of {dataset_id} holds {feature}; it must hold one class an image (class label, integer or "
        f"string).{several} Name another column, label_column, or convert this one."
    )


def _relabelled(dataset: Dataset, name: str, index_of: dict, classes: ClassLabel, first: str) -> Dataset:
    labels = plain_labels(dataset)
    unknown = sorted({value for value in labels if value is not None and value not in index_of and value != -1})
    if unknown:
        raise ValueError(f"The split {name} holds the labels {unknown[:5]}, which {first} lacks.")
    column = np.array([index_of.get(value, -1) for value in labels], dtype=np.int64)
    # Not `cast_column`, which would write the images to disk a second time.
    return dataset.remove_columns("label").add_column("label", column, feature=classes)
