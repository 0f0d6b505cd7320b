"""A name, Hub id or local folder -> train, validation and test splits of images and masks of class indices."""

import logging
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, Image

from hf_robust_ft.data.columns import check_columns
from hf_robust_ft.data.images import RGBImage
from hf_robust_ft.data.segmentation.class_names import stated_names
from hf_robust_ft.data.segmentation.columns import find_mask_columns
from hf_robust_ft.data.segmentation.digit_scenes import CLASS_NAMES, load_digit_scenes
from hf_robust_ft.data.segmentation.folders import load_mask_folder
from hf_robust_ft.data.segmentation.masks import IGNORE_INDEX, MaskReader, check_labels
from hf_robust_ft.data.segmentation.pairs import LargestLabel, usable_pairs
from hf_robust_ft.data.sources import EMBEDDED_DATASETS, common_commit, disk_errors_explained, load_source
from hf_robust_ft.data.specs import SPECS
from hf_robust_ft.data.splits import SplitSizes, canonical_names, first_split, with_all_splits
from hf_robust_ft.provenance.class_names import class_names

EMBEDDED_SCENES = "digits_scenes"

logger = logging.getLogger(__name__)


class SegmentationSplits(DatasetDict):
    """The splits with columns `image` and `mask`, what their classes are, and `facts` for the report.

    Attributes:
        class_names: by index.
        ignore_index: the label of pixels that are left out.
        reduce_labels: whether 0 is left out and classes count from 1.
        facts: `split_sizes`, `masks` (the two above), and where they apply `dataset_commit` and `skipped_images`, as of
            classification.
    """

    class_names: list[str]
    ignore_index: int
    reduce_labels: bool
    facts: dict[str, Any]

    def reader(self, config: Any = None) -> MaskReader:
        """Makes labels of the masks, for a model with these classes.

        Args:
            config: of the model: the order of its classes, and the label that its loss leaves out.

        Raises:
            ValueError: the model tells another number of classes apart.
        """
        options = {"ignore_index": self.ignore_index, "reduce_labels": self.reduce_labels}
        if config is None:
            return MaskReader(len(self.class_names), **options)
        names, known = self.class_names, class_names(config)
        if len(names) != len(known):
            raise ValueError(
                f"The checkpoint tells {len(known)} classes apart, the dataset has {len(names)}: evaluate a "
                "checkpoint that was fine-tuned on this dataset (hf-robust-ft train), or set reduce_labels if its "
                "classes count from 1."
            )
        order = tuple(known.index(name) for name in names) if sorted(names) == sorted(known) else None
        if order is None:
            logger.warning(
                "The checkpoint names its classes %s..., the dataset %s...: they are taken to be in the same order.",
                known[:3], names[:3],
            )  # fmt: skip
        same = order is None or order == tuple(range(len(names)))
        return MaskReader(
            len(names), **options, order=None if same else order, label_for_ignored=loss_ignore_index(config)
        )


def loss_ignore_index(config: Any) -> int:
    """The label that a model's own loss leaves out: 255 unless its config says otherwise."""
    for name in ("semantic_loss_ignore_index", "loss_ignore_index"):
        if isinstance(index := getattr(config, name, None), int):
            return index
    return IGNORE_INDEX


def load_segmentation_dataset(
    dataset_id: str,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    id2label: str | Mapping | None = None,
    ignore_index: int = IGNORE_INDEX,
    reduce_labels: bool = False,
    validation_size: float = 0.1,
    test_size: float = 0.2,
    seed: int = 0,
    require_train: bool = True,
    skip_bad_images: bool = False,
    **load_options: object,
) -> SegmentationSplits:
    """Load a semantic segmentation dataset as splits `train`, `validation` and `test`.

    Missing splits are made as for classification, but not by class. Every mask is read once.

    Args:
        dataset_id: `digits_scenes` (embedded, extra `demo`), a Hub dataset id, a folder (pairs of `images/` and
            `masks/`, an imagefolder with a metadata file that names a mask for each image, or parquet), or a parquet
            file.
        image_column: the images; found by type and name.
        label_column: the masks, as images of class indices (one channel) or as arrays (height, width); found by name.
        id2label: names of the classes by index, after `reduce_labels`: a JSON file or its content. By default what
            the column's type says, or `id2label.json` beside the data; without either, classes are numbered.
        ignore_index: the label of pixels that are left out of loss and figures.
        reduce_labels: leave out label 0 and count classes from 1, as image processors do (`do_reduce_labels`).
        validation_size: share of train to split off, in (0, 1).
        test_size: share of train to split off, in (0, 1).
        seed: of what is split off.
        require_train: without it, a dataset of test or validation images alone is returned as it is.
        skip_bad_images: leave out pairs that cannot be used (undecodable, of two sizes, without a labelled pixel), and
            log them; decodes every image once.
        load_options: passed to `datasets.load_dataset` (`revision`, `token`, `name`, ...).

    Raises:
        ValueError: no such dataset, no train split, columns not found, pairs that cannot be used, labels beyond the
            classes, fewer than two classes, or a bad share.
        OSError: the disk is full, or the Hub does not answer.
    """
    sizes = SplitSizes(validation_size, test_size, seed)
    if dataset_id in SPECS or dataset_id in EMBEDDED_DATASETS:
        raise ValueError(
            f"{dataset_id} has one class an image and no masks, so no model for image-segmentation can be trained or "
            f"measured on it. The embedded dataset with masks is {EMBEDDED_SCENES}."
        )
    with disk_errors_explained(dataset_id, load_options.get("cache_dir")):
        source = canonical_names(_source(dataset_id, load_options))
        first = first_split(source, dataset_id, require_train)
        image, mask = find_mask_columns(source[first].features, dataset_id, image_column, label_column)
        names = (
            list(CLASS_NAMES)
            if dataset_id == EMBEDDED_SCENES and id2label is None
            else stated_names(source[first].features, mask, dataset_id, id2label, load_options)
        )
        facts: dict[str, Any] = common_commit(source)
        source = {name: _two_columns(split, image, mask, dataset_id, name) for name, split in source.items()}
        reading = {"ignore_index": ignore_index, "reduce_labels": reduce_labels, "skip_bad_images": skip_bad_images}
        looked = {name: usable_pairs(split, dataset_id, name, **reading) for name, split in source.items()}
    largest = {name: found for name, (_, _, found) in looked.items()}
    names = _checked_names(names, largest, first, dataset_id, reduce_labels)
    if skip_bad_images:
        facts["skipped_images"] = {name: bad for name, (_, bad, _) in looked.items()}
    source = {name: split for name, (split, _, _) in looked.items()}
    splits = SegmentationSplits(with_all_splits(source, dataset_id, sizes, by=None) if "train" in source else source)
    splits.class_names, splits.ignore_index, splits.reduce_labels = names, ignore_index, reduce_labels
    facts["masks"] = {"ignore_index": ignore_index, "reduce_labels": reduce_labels}
    splits.facts = {name: value for name, value in facts.items() if value} | {
        "split_sizes": {name: len(split) for name, split in splits.items()}
    }
    return splits


def drawn_pairs(dataset: Dataset, count: int, seed: int) -> Dataset:
    """`count` pairs, or all there are, in a random order that depends on nothing but `seed`."""
    return dataset.select(np.random.default_rng(seed).permutation(len(dataset))[:count])


def _source(dataset_id: str, load_options: dict[str, Any]) -> dict[str, Dataset]:
    folder = os.path.expanduser(dataset_id)
    if dataset_id == EMBEDDED_SCENES:
        if load_options:
            raise ValueError(f"{dataset_id} is embedded and takes no {sorted(load_options)}.")
        return load_digit_scenes()
    pairs = load_mask_folder(folder, dataset_id) if os.path.isdir(folder) else None
    if pairs is not None:
        if load_options:
            raise ValueError(f"{dataset_id} is a folder of images and masks, and takes no {sorted(load_options)}.")
        return pairs
    return load_source(dataset_id, load_options)


def _two_columns(dataset: Dataset, image: str, mask: str, dataset_id: str, split: str) -> Dataset:
    check_columns(dataset, (image, mask), dataset_id, split)
    dataset = dataset.select_columns([image, mask])
    renames = {old: new for old, new in ((image, "image"), (mask, "mask")) if old != new}
    dataset = dataset.rename_columns(renames) if renames else dataset
    dataset = dataset.cast_column("image", RGBImage(id=f"{dataset_id} ({split})"))
    return dataset.cast_column("mask", Image()) if isinstance(dataset.features["mask"], Image) else dataset


def _checked_names(
    names: list[str] | None, largest: dict[str, LargestLabel], first: str, dataset_id: str, reduce_labels: bool
) -> list[str]:
    """The classes, as named or numbered by the labels of the split `first`, with none beyond them in any split."""
    if names is None:
        names = [f"LABEL_{index}" for index in range(largest[first].label + 1)]
        logger.warning(
            "%s does not name its classes: the labels of %s run to %d, so there are %d. Name them with id2label.",
            dataset_id, first, largest[first].label + reduce_labels, len(names),
        )  # fmt: skip
    for split, found in largest.items():
        check_labels(np.array([found.label]), len(names), f"{dataset_id} ({split}), {found.holder}")
    if len(names) < 2:
        raise ValueError(
            f"{dataset_id} has one class only: {names}. Masks that hold 0 and 255 are stored as pictures: divide them "
            "by 255, or name another ignore_index."
        )
    return names
