"""A name, Hub id or local path -> train, validation and test splits of upright RGB images and class labels."""

import logging
import os
from typing import Any

from datasets import Dataset, DatasetDict

from hf_robust_ft.data.bad_images import without_bad_images
from hf_robust_ft.data.columns import find_columns, is_labelled, two_columns, with_class_labels
from hf_robust_ft.data.images import RGBImage
from hf_robust_ft.data.sources import EMBEDDED_DATASETS, common_commit, disk_errors_explained, load_source
from hf_robust_ft.data.specs import SPECS, DatasetSpec
from hf_robust_ft.data.splits import SplitSizes, canonical_names, check_source, split_by_spec, with_all_splits
from hf_robust_ft.data.streaming import Streaming, stream_splits

logger = logging.getLogger(__name__)


class ImageSplits(DatasetDict):
    """The splits, and in `facts` what a report should say of where they come from.

    `split_sizes` (a stream has none), and where they apply: `dataset_commit` (what the Hub resolved the revision to),
    `skipped_images` (by split of the source, a list of `index`, `file`, `reason`; of a stream only those among the
    images kept for evaluation); of the paper's datasets also
    `dataset_hub_id`, `paper_split_sizes`, `dataset_license`, `dataset_citation`, `dataset_note`.
    """

    facts: dict[str, Any]


def load_image_dataset(
    dataset_id: str,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    validation_size: float = 0.1,
    test_size: float = 0.2,
    seed: int = 0,
    require_train: bool = True,
    skip_bad_images: bool = False,
    streaming: bool | Streaming = False,
    **load_options: object,
) -> ImageSplits:
    """Load an image classification dataset as splits `train`, `validation` and `test`.

    The paper's datasets (`SPECS`) have the paper's splits. In any other, a split without labels (all -1, as in Hub
    competitions) counts as missing; a missing test split is the validation split if there is one, else a stratified
    part of train; a missing validation split is a stratified part of train. What was split off or left out is logged.
    Of a folder of images, `hf_robust_ft.data.image_folders` says which folders are splits and which classes.

    Args:
        dataset_id: one of the paper's (`caltech256`, `cub200`, `stanford_dogs`, `stanford_cars`, `fgvc_aircraft`),
            `digits` (embedded, extra `demo`), a Hub dataset id, a folder (imagefolder or parquet), or a parquet file.
        image_column: the images; found by its type if there is only one.
        label_column: the classes, as class labels, integers or strings; found by type or name if there is only one.
        validation_size: share of train to split off, in (0, 1).
        test_size: share of train to split off, in (0, 1).
        seed: of what is split off, drawn or shuffled.
        require_train: without it, a dataset of test or validation images alone is returned as it is.
        skip_bad_images: leave out images that cannot be decoded, and log them; decodes every image once. In the
            stream of training images they are logged as they are met, and not counted. Without it, such an image
            raises when it is read.
        streaming: store nothing on disk: `train` is a shuffled stream (train on it with `max_steps`), and a bounded
            number of `validation` and `test` images is kept in memory, as `Streaming` says.
        load_options: passed to `datasets.load_dataset` (`revision`, `token`, `name`, `cache_dir`, ...).

    Returns:
        A `DatasetDict` whose splits have the columns `image` (decoded upright and in RGB) and `label` (a
        `ClassLabel`), with `facts` for the report.

    Raises:
        ValueError: no such dataset or no access to it, fewer images than one of the paper's datasets has, no train
            split, columns not found, ambiguous or not one class an image, fewer than two classes, or a bad share.
        OSError: the disk is full, or the Hub does not answer.
    """
    spec, sizes = SPECS.get(dataset_id), SplitSizes(validation_size, test_size, seed)
    if (spec is not None or dataset_id in EMBEDDED_DATASETS) and os.path.exists(dataset_id):
        meant = spec.hub_id if spec is not None else "the embedded dataset"
        logger.warning("%s means %s here, not what lies in this folder: that is ./%s.", dataset_id, meant, dataset_id)
    if spec is not None:
        sizes.check_unchanged(spec)
        image_column, label_column = image_column or spec.image_column, label_column or spec.label_column
        load_options = {"revision": spec.revision, **load_options}
    if streaming:
        _check_can_stream(dataset_id, spec)
        load_options = {**load_options, "streaming": True}
    with disk_errors_explained(dataset_id, load_options.get("cache_dir")):
        source = canonical_names(load_source(spec.hub_id if spec else dataset_id, load_options))
        if spec is not None:
            source = {name: split for name, split in source.items() if name in spec.source_sizes}
        if "train" not in source and require_train:
            raise ValueError(f"{dataset_id} has no 'train' split, only {sorted(source)}.")
        facts, columns = _facts(spec, source), (image_column, label_column)
        if streaming:
            options = streaming if isinstance(streaming, Streaming) else Streaming()
            sizes = sizes.for_stream(spec)
            splits, skipped = stream_splits(source, dataset_id, columns, sizes, options, skip_bad_images)
            facts |= {"skipped_images": skipped} if skip_bad_images else {}
        else:
            source = _prepared(source, dataset_id, spec, columns)
            if skip_bad_images:
                source, facts["skipped_images"] = _without_bad_images(source, dataset_id)
            splits = _split(source, dataset_id, spec, sizes)
    return _finished(splits, facts, dataset_id)


def _check_can_stream(dataset_id: str, spec: DatasetSpec | None) -> None:
    if dataset_id in EMBEDDED_DATASETS:
        raise ValueError(f"{dataset_id} is embedded: there is nothing to stream.")
    if spec is not None and spec.pooled:
        raise ValueError(f"The splits of {dataset_id} are drawn over all its images: load it without streaming.")


def _prepared(
    source: dict[str, Dataset], dataset_id: str, spec: DatasetSpec | None, columns: tuple[str | None, str | None]
) -> dict[str, Dataset]:
    """The labelled splits with the columns `image` and `label`."""
    if spec is not None:
        check_source(source, spec)
    first = "train" if "train" in source else min(source)
    image, label = find_columns(source[first].features, dataset_id, *columns)
    source = {name: two_columns(split, image, label) for name, split in source.items()}
    source = with_class_labels(source, first)
    classes = source[first].features["label"].num_classes
    if spec is not None and classes != spec.num_classes:
        raise ValueError(
            f"{dataset_id} has {spec.num_classes} classes, the column {label!r} of this copy {classes}: name another "
            "label_column, or load it by its Hub id."
        )
    return {name: split for name, split in source.items() if is_labelled(split, name, dataset_id)}


def _without_bad_images(source: dict[str, Dataset], dataset_id: str) -> tuple[dict[str, Dataset], dict[str, list]]:
    checked = {name: without_bad_images(split, dataset_id, name) for name, split in source.items()}
    return {name: split for name, (split, _) in checked.items()}, {name: bad for name, (_, bad) in checked.items()}


def _split(source: dict[str, Dataset], dataset_id: str, spec: DatasetSpec | None, sizes: SplitSizes) -> DatasetDict:
    if "train" not in source:
        return DatasetDict(source)
    names = source["train"].features["label"].names
    if len(names) < 2:
        raise ValueError(f"{dataset_id} has one class only: {names}.")
    if spec is not None and set(spec.source_sizes) <= set(source):
        return split_by_spec(source, spec, sizes.seed)
    level = logging.INFO if dataset_id in EMBEDDED_DATASETS else logging.WARNING
    return with_all_splits(source, dataset_id, sizes, level)


def _facts(spec: DatasetSpec | None, source: dict[str, Dataset]) -> dict[str, Any]:
    facts: dict[str, Any] = common_commit(source)
    if spec is not None:
        facts |= {
            "dataset_hub_id": spec.hub_id,
            "paper_split_sizes": dict(spec.paper_sizes),
            "dataset_license": spec.license,
            "dataset_citation": spec.citation,
            "dataset_note": spec.note,
        }
    return {name: value for name, value in facts.items() if value}


def _finished(splits: DatasetDict, facts: dict[str, Any], dataset_id: str) -> ImageSplits:
    named = {
        name: split.cast_column("image", RGBImage(id=f"{dataset_id} ({name})")) if isinstance(split, Dataset) else split
        for name, split in splits.items()
    }
    result = ImageSplits(named)
    result.facts = facts | {
        "split_sizes": {name: len(split) for name, split in named.items() if isinstance(split, Dataset)}
    }
    return result
