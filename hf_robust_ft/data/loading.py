"""A Hub id, a local folder or the embedded digits -> train, validation and test splits of `image` and `label`."""

import logging
import os

from datasets import ClassLabel, Dataset, DatasetDict, Image, Value, load_dataset

from hf_robust_ft.data.digits import load_digits_dataset

EMBEDDED_DATASETS = {"digits": load_digits_dataset}
VALIDATION_NAMES = ("validation", "valid", "val", "dev")
LABEL_NAMES = ("label", "labels", "fine_label", "class", "target")

logger = logging.getLogger(__name__)


def load_image_dataset(
    dataset_id: str,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    validation_size: float = 0.1,
    test_size: float = 0.2,
    seed: int = 0,
    require_train: bool = True,
    **load_options: object,
) -> DatasetDict:
    """Load an image classification dataset as splits `train`, `validation` and `test`.

    A split without labels (all -1, as in Hub competitions) counts as missing. A missing test split is the validation
    split if there is one, else a stratified part of train; a missing validation split is a stratified part of train.
    What was split off or left out is logged.

    Args:
        dataset_id: a Hub dataset id, a local folder (imagefolder or parquet), or `digits` (extra `demo`).
        image_column: the images; found by its type if there is only one.
        label_column: the classes, as class labels, integers or strings; found by type or name if there is only one.
        validation_size: share of train to split off, in (0, 1).
        test_size: share of train to split off, in (0, 1).
        seed: of both splits.
        require_train: without it, a dataset of test or validation images alone is returned as it is.
        load_options: passed to `datasets.load_dataset` (`revision`, `token`, `name`, `cache_dir`, ...).

    Returns:
        A `DatasetDict` whose splits have the columns `image` and `label` (a `ClassLabel`).

    Raises:
        ValueError: no train split, columns not found or ambiguous, fewer than two classes, or a bad share.
    """
    for name, share in (("validation_size", validation_size), ("test_size", test_size)):
        if not 0 < share < 1:
            raise ValueError(f"{name} must be a share between 0 and 1, got {share}.")
    splits = _load_splits(dataset_id, load_options)
    if "train" not in splits and require_train:
        raise ValueError(f"{dataset_id} has no 'train' split, only {sorted(splits)}.")
    first = "train" if "train" in splits else min(splits)
    image, label = _find_columns(splits[first], dataset_id, image_column, label_column)
    splits = DatasetDict({name: _with_two_columns(split, image, label) for name, split in splits.items()})
    splits = _with_class_labels(splits, first)
    splits = DatasetDict({name: split for name, split in splits.items() if _is_labelled(split, name, dataset_id)})
    if "train" not in splits:
        return DatasetDict({"validation" if name in VALIDATION_NAMES else name: s for name, s in splits.items()})
    if splits["train"].features["label"].num_classes < 2:
        raise ValueError(f"{dataset_id} has one class only: {splits['train'].features['label'].names}.")
    return _with_all_splits(splits, dataset_id, validation_size, test_size, seed)


def _load_splits(dataset_id: str, load_options: dict) -> dict[str, Dataset]:
    if dataset_id in EMBEDDED_DATASETS:
        if load_options:
            raise ValueError(f"{dataset_id} is embedded and takes no {sorted(load_options)}.")
        return {"train": EMBEDDED_DATASETS[dataset_id]()}
    looks_like_path = os.path.isabs(dataset_id) or dataset_id.startswith((".", "~"))
    dataset_id = os.path.expanduser(dataset_id)
    if looks_like_path and not os.path.isdir(dataset_id):
        raise ValueError(f"{dataset_id} is not a folder. Give a Hub dataset id or a folder with train/<class>/<image>.")
    if os.path.isfile(os.path.join(dataset_id, "dataset_dict.json")):
        if load_options:
            raise ValueError(f"{dataset_id} was written by save_to_disk and takes no {sorted(load_options)}.")
        return dict(DatasetDict.load_from_disk(dataset_id))
    return dict(load_dataset(dataset_id, **load_options))


def _find_columns(dataset: Dataset, dataset_id: str, image: str | None, label: str | None) -> tuple[str, str]:
    features = dataset.features
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
    if not labels and os.path.isdir(dataset_id):
        raise ValueError(
            f"{dataset_id} has no label column among {list(features)}: an imagefolder needs two class folders or more, "
            "train/<class>/<image>. Otherwise name the column to use: label_column."
        )
    if len(labels) != 1:
        found = "no label column" if not labels else f"several label columns, {labels}"
        raise ValueError(f"{dataset_id} has {found} among {list(features)}. Name the one to use: label_column.")
    return images[0], labels[0]


def _with_two_columns(dataset: Dataset, image: str, label: str) -> Dataset:
    dataset = dataset.select_columns([image, label])
    renames = {old: new for old, new in ((image, "image"), (label, "label")) if old != new}
    return dataset.rename_columns(renames) if renames else dataset


def _with_class_labels(splits: DatasetDict, first: str) -> DatasetDict:
    """Integer and string labels become class labels with the classes of the split `first`."""
    feature = splits[first].features["label"]
    if isinstance(feature, ClassLabel):
        return splits
    if not isinstance(feature, Value) or not (feature.dtype.startswith(("int", "uint")) or feature.dtype == "string"):
        raise ValueError(f"The label column holds {feature}; it must hold one class an image (integer or string).")
    values = sorted(value for value in splits[first].unique("label") if value is not None)
    if feature.dtype == "string":
        names = values
    elif values[0] < 0:
        raise ValueError(f"The labels of {first} hold {values[0]}: filter out unlabelled images first.")
    else:
        names = [str(index) for index in range(values[-1] + 1)]
    return splits.cast_column("label", ClassLabel(names=names))


def _is_labelled(dataset: Dataset, name: str, dataset_id: str) -> bool:
    """Whether every image has a class; False, and said so, if none has.

    Raises:
        ValueError: some have and some have not.
    """
    labels = dataset.with_format("arrow", columns=["label"])[:]["label"].to_pylist()
    unlabelled = sum(label is None or label < 0 for label in labels)
    if unlabelled == 0:
        return True
    if unlabelled < len(labels) or name == "train":
        raise ValueError(
            f"{unlabelled} of {len(labels)} images of {dataset_id} ({name}) have no label: filter them out."
        )
    logger.warning("%s (%s) has no labels: it is left out.", dataset_id, name)
    return False


def _with_all_splits(
    splits: DatasetDict, dataset_id: str, validation_size: float, test_size: float, seed: int
) -> DatasetDict:
    train = splits["train"]
    validation = next((splits[name] for name in VALIDATION_NAMES if name in splits), None)
    test = splits.get("test")
    if test is None and validation is not None:
        test, validation = validation, None
        logger.warning("%s has no test split: its validation split serves as test.", dataset_id)
    if test is None:
        train, test = _split_off(train, test_size, seed, dataset_id, "test")
    if validation is None:
        train, validation = _split_off(train, validation_size, seed, dataset_id, "validation")
    return DatasetDict({"train": train, "validation": validation, "test": test})


def _split_off(train: Dataset, share: float, seed: int, dataset_id: str, name: str) -> tuple[Dataset, Dataset]:
    try:
        parts = train.train_test_split(test_size=share, seed=seed, stratify_by_column="label")
    except ValueError as error:
        raise ValueError(
            f"{dataset_id} has no {name} split and none could be split off train ({error}). "
            f"Add one, or change {name}_size={share}."
        ) from None
    logger.log(
        logging.INFO if dataset_id in EMBEDDED_DATASETS else logging.WARNING,
        "%s has no %s split: %d of %d training images were split off (stratified, seed %d).",
        dataset_id, name, len(parts["test"]), len(train), seed,
    )  # fmt: skip
    return parts["train"], parts["test"]
