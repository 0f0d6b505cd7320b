"""Which images train, which validate and which test: always by class, and the same ones for the same seed."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from datasets import Dataset, DatasetDict, concatenate_datasets

from hf_robust_ft.data.columns import plain_labels
from hf_robust_ft.data.specs import DatasetSpec

# What splits are called, on the Hub and as folders.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SplitSizes:
    """The shares of train, in (0, 1), that become a missing validation or test split, and the seed of the draw.

    Raises:
        ValueError: a share outside (0, 1).
    """

    validation: float = 0.1
    test: float = 0.2
    seed: int = 0

    def __post_init__(self):
        for name in ("validation", "test"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}_size must be a share between 0 and 1, got {getattr(self, name)}.")

    def check_unchanged(self, spec: DatasetSpec) -> None:
        """Raise if shares were given for a dataset whose splits the paper fixes."""
        if (self.validation, self.test) != (SplitSizes.validation, SplitSizes.test):
            raise ValueError(
                f"{spec.name} has the paper's splits, so validation_size and test_size do not apply. Load it by its "
                f"Hub id, {spec.hub_id}, with label_column={spec.label_column!r}, to split it otherwise."
            )

    def for_stream(self, spec: DatasetSpec | None) -> "SplitSizes":
        """The shares that a stream is split by: those given, or the paper's."""
        return replace(self, validation=spec.sizes["validation"] / spec.source_sizes["train"]) if spec else self


def stratified_sample(dataset: Dataset, count: int, seed: int) -> Dataset:
    """Exactly `count` images, each class by its share, in a random order that depends on nothing but `seed`.

    A class's number is its share of `count` rounded down or up; which are rounded up is drawn among equal remainders.

    Args:
        dataset: with a column `label`.
        count: from 1 to the number of images.
        seed: of the draw and the order.

    Raises:
        ValueError: `count` is not in that range.
    """
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= len(dataset):
        raise ValueError(f"count must be a whole number from 1 to the {len(dataset)} images there are, got {count!r}.")
    rng = np.random.default_rng(seed)
    return dataset.select(rng.permutation(_draw(_labels(dataset), count, rng)))


def split_called(name: str) -> str | None:
    """Which split goes by this name, in capitals or not.

    >>> split_called("Val"), split_called("bullet_train")
    ('validation', None)
    """
    return next((split for split, names in SPLIT_NAMES.items() if name.lower() in names), None)


def canonical_names(splits: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """The splits by their names in `SPLIT_NAMES`; of several for one, the first there keeps it."""
    found = {split: next((name for name in names if name in splits), None) for split, names in SPLIT_NAMES.items()}
    renamed = {name: split for split, name in found.items()}
    return {renamed.get(name, str(name)): split for name, split in splits.items()}


def first_split(splits: Mapping[str, Dataset], dataset_id: str, require_train: bool) -> str:
    """The split that tells of columns and classes: train, or the first by name where it is not required.

    Raises:
        ValueError: it is required, and there is none.
    """
    if "train" not in splits and require_train:
        raise ValueError(f"{dataset_id} has no 'train' split, only {sorted(splits)}.")
    return "train" if "train" in splits else min(splits)


def split_by_spec(splits: Mapping[str, Dataset], spec: DatasetSpec, seed: int) -> DatasetDict:
    """The splits of one of the paper's datasets: what is held out or subsampled is drawn by class."""
    rng = np.random.default_rng(seed)
    if spec.pooled:
        return DatasetDict(_split_pool(concatenate_datasets([splits[name] for name in spec.source_sizes]), spec, rng))
    parts = {name: splits[name] for name in spec.source_sizes}
    if "validation" not in parts:
        held_out = _draw(_labels(parts["train"]), spec.sizes["validation"], rng)
        parts["validation"] = parts["train"].select(held_out)
        parts["train"] = parts["train"].select(np.setdiff1d(np.arange(len(parts["train"])), held_out))
    if spec.sizes["test"] < len(parts["test"]):
        parts["test"] = parts["test"].select(_draw(_labels(parts["test"]), spec.sizes["test"], rng))
    return DatasetDict({name: parts[name] for name in ("train", "validation", "test")})


def check_source(splits: Mapping[str, Dataset], spec: DatasetSpec) -> None:
    """Raise if the copy of one of the paper's datasets lacks images or splits; warn if it holds more.

    Raises:
        ValueError: it lacks some.
    """
    cure = f"To use this copy as it is, load it by its Hub id, {spec.hub_id}, with label_column={spec.label_column!r}."
    missing = sorted(set(spec.source_sizes) - set(splits))
    if missing:
        raise ValueError(f"{spec.name}: the copy has no split {missing[0]!r}, only {sorted(splits)}. {cure}")
    found = {name: len(splits[name]) for name in spec.source_sizes}
    expected = dict(spec.source_sizes)
    if spec.pooled:
        found, expected = {"all": sum(found.values())}, {"all": sum(expected.values())}
    if any(found[name] < expected[name] for name in expected):
        raise ValueError(
            f"{spec.name}: the copy holds {found} images, a complete one {expected}. If a download was cut off, load "
            f"it again with download_mode='force_redownload'. {cure}"
        )
    if found != expected:
        logger.warning(
            "%s: the copy holds %s images, expected were %s: results may not compare with the paper's.",
            spec.name, found, expected,
        )  # fmt: skip


def with_all_splits(
    splits: Mapping[str, Dataset],
    dataset_id: str,
    sizes: SplitSizes,
    level: int = logging.WARNING,
    by: str | None = "label",
) -> DatasetDict:
    """Train, validation and test; what is missing is split off train, by the classes in a column, and said so."""
    if unused := sorted(set(splits) - set(SPLIT_NAMES)):
        logger.warning("%s: its splits %s are not used.", dataset_id, ", ".join(unused))
    train, validation, test = (splits.get(name) for name in ("train", "validation", "test"))
    if test is None and validation is not None:
        test, validation = validation, None
        logger.warning("%s has no test split: its validation split serves as test.", dataset_id)
    if test is None:
        train, test = _split_off(train, sizes.test, sizes.seed, dataset_id, "test", level, by)
    if validation is None:
        train, validation = _split_off(train, sizes.validation, sizes.seed, dataset_id, "validation", level, by)
    return DatasetDict({"train": train, "validation": validation, "test": test})


def _split_off(
    train: Dataset, share: float, seed: int, dataset_id: str, name: str, level: int, by: str | None
) -> tuple[Dataset, Dataset]:
    try:
        parts = train.train_test_split(test_size=share, seed=seed, stratify_by_column=by)
    except ValueError as error:
        raise ValueError(
            f"{dataset_id} has no {name} split and none could be split off train ({error}). "
            f"Add one, or change {name}_size={share}."
        ) from None
    logger.log(
        level,
        "%s has no %s split: %d of %d training images were split off (%s, seed %d).",
        dataset_id, name, len(parts["test"]), len(train), "stratified" if by else "at random", seed,
    )  # fmt: skip
    return parts["train"], parts["test"]


def _split_pool(pool: Dataset, spec: DatasetSpec, rng: np.random.Generator) -> dict[str, Dataset]:
    """As many training and validation images of each class, whatever its size; the rest tests."""
    ends = np.cumsum([spec.sizes[name] // spec.num_classes for name in ("train", "validation")])
    labels = _labels(pool)
    chosen: dict[str, list] = {"train": [], "validation": [], "test": []}
    for index in range(spec.num_classes):
        members = rng.permutation(np.flatnonzero(labels == index))
        for part, indices in zip(chosen.values(), np.split(members, ends), strict=True):
            part.extend(indices)
    return {name: pool.select(np.sort(np.array(indices, dtype=np.int64))) for name, indices in chosen.items()}


def _labels(dataset: Dataset) -> np.ndarray:
    return np.asarray(plain_labels(dataset), dtype=np.int64)


def _draw(labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Sorted indices of `count` images, each class by its share (largest remainders)."""
    classes, members = np.unique(labels, return_inverse=True)
    share = np.bincount(members) * (count / len(labels))
    take = np.floor(share + 1e-9).astype(int)  # shares that are whole numbers stay so
    order = np.lexsort((rng.permutation(len(classes)), take - share))
    take[order[: count - take.sum()]] += 1
    drawn = [rng.permutation(np.flatnonzero(members == index))[:number] for index, number in enumerate(take)]
    return np.sort(np.concatenate(drawn))
