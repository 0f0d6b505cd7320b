"""Datasets larger than the disk: training images come as a stream, a bounded number for evaluation is kept in memory.

What goes where is decided by a keyed hash of each image file, so it is the same in every pass and on every process,
and does not depend on the order of the source, which is often sorted by class. Shares are met on average, not exactly.
"""

import hashlib
import heapq
import logging
from dataclasses import dataclass

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, IterableDataset

from hf_robust_ft.data.bad_images import without_bad_images
from hf_robust_ft.data.columns import find_columns
from hf_robust_ft.data.images import RGBImage, UndecodableImageError, decode_rgb, image_bytes
from hf_robust_ft.data.splits import SplitSizes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Streaming:
    """How a dataset is streamed.

    Args:
        shuffle_buffer: training images in memory at a time (encoded), from which the next one is drawn. Sources sorted
            by class need one that spans several classes.
        eval_samples: images to keep of each evaluation split, drawn uniformly in one pass over it.

    Raises:
        ValueError: a number below 1.
    """

    shuffle_buffer: int = 1000
    eval_samples: int = 1000

    def __post_init__(self):
        for name in ("shuffle_buffer", "eval_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")


def stream_splits(
    splits: dict[str, IterableDataset],
    dataset_id: str,
    columns: tuple[str | None, str | None],
    sizes: SplitSizes,
    options: Streaming,
    skip_bad_images: bool,
) -> tuple[DatasetDict, dict[str, list]]:
    """A shuffled stream `train`, and `validation` and `test` of at most `options.eval_samples` images in memory.

    Beside them what was skipped of the images in memory, by split.

    A missing test split is half of the validation sample, if there is one; what is missing otherwise is held out of
    train, by one pass over it.

    Raises:
        ValueError: the source declares no columns or no class names.
    """
    streams = {name: _two_columns(stream, dataset_id, *columns) for name, stream in splits.items()}
    parts = _evaluation_samples(streams, dataset_id, sizes.seed, options.eval_samples)
    if "train" not in streams:
        return _without_bad_parts(parts, dataset_id, skip_bad_images)
    start = 0.0
    for name, share in (("validation", sizes.validation), ("test", sizes.test)):
        if name not in parts:
            logger.warning("%s: one pass over train, to hold out about %.0f %% for %s.", dataset_id, 100 * share, name)
            held_out = streams["train"].filter(_Bucket(start, start + share, sizes.seed), input_columns="image")
            parts[name] = _sample(held_out, options.eval_samples, sizes.seed, dataset_id, name)
            start += share
    # `map` takes the types off: behind a filter of typed examples `cast` would have no effect.
    train = streams["train"].map(_as_it_is)
    if start:
        train = train.filter(_Bucket(start, 1.0, sizes.seed), input_columns="image")
    if skip_bad_images:
        train = train.filter(_is_decodable, input_columns="image")
    parts, skipped = _without_bad_parts(parts, dataset_id, skip_bad_images)
    features = Features({"image": RGBImage(id=f"{dataset_id} (train)"), "label": streams["train"].features["label"]})
    parts["train"] = train.shuffle(seed=sizes.seed, buffer_size=options.shuffle_buffer).cast(features)
    return DatasetDict({name: parts[name] for name in ("train", "validation", "test")}), skipped


def _without_bad_parts(
    parts: dict[str, Dataset], dataset_id: str, skip_bad_images: bool
) -> tuple[DatasetDict, dict[str, list]]:
    if not skip_bad_images:
        return DatasetDict(parts), {}
    checked = {name: without_bad_images(part, dataset_id, name) for name, part in parts.items()}
    return DatasetDict({name: part for name, (part, _) in checked.items()}), {
        name: bad for name, (_, bad) in checked.items()
    }


def _evaluation_samples(
    streams: dict[str, IterableDataset], dataset_id: str, seed: int, count: int
) -> dict[str, Dataset]:
    """What the source has of validation and test."""
    parts = {}
    for name in ("test", "validation"):
        wanted = count if name == "test" or "test" in parts else 2 * count
        sample = _sample(streams[name], wanted, seed, dataset_id, name) if name in streams else None
        if sample is not None:
            parts[name] = sample
    if "train" in streams and "test" not in parts and "validation" in parts:
        sample = parts["validation"]
        half = len(sample) // 2
        parts = {"validation": sample.select(range(half)), "test": sample.select(range(half, len(sample)))}
        logger.warning("%s has no labelled test split: half of the validation sample serves as test.", dataset_id)
    return parts


def _as_it_is(example: dict) -> dict:
    return example


class _Bucket:
    """Whether the hash of an image falls into [start, end) of [0, 1)."""

    def __init__(self, start: float, end: float, seed: int):
        self.start, self.end, self.seed = start, end, seed

    def __call__(self, image: dict) -> bool:
        return self.start <= int.from_bytes(_digest(image, self.seed, b"split"), "big") / 2**64 < self.end


def _two_columns(
    stream: IterableDataset, dataset_id: str, image_column: str | None, label_column: str | None
) -> IterableDataset:
    features = stream.features
    if features is None:
        raise ValueError(
            f"{dataset_id} does not declare its columns, which streaming needs: load it without streaming."
        )
    image, label = find_columns(features, dataset_id, image_column, label_column)
    if not isinstance(features[label], ClassLabel):
        raise ValueError(
            f"Column {label!r} of {dataset_id} holds {features[label]}. Streaming needs the class names before it "
            "starts (a ClassLabel column): load it without streaming, or save it as parquet with class labels."
        )
    stream = stream.select_columns([image, label])
    renames = {old: new for old, new in ((image, "image"), (label, "label")) if old != new}
    stream = stream.rename_columns(renames) if renames else stream
    return stream.cast_column("image", Image(decode=False))


def _sample(stream: IterableDataset, count: int, seed: int, dataset_id: str, name: str) -> Dataset | None:
    """The `count` images with the smallest hashes: uniform, and the same whatever their order; None if unlabelled.

    Raises:
        ValueError: no images at all, or some without a label.
    """
    smallest: list = []
    seen = unlabelled = 0
    for number, example in enumerate(stream):
        seen += 1
        unlabelled += example["label"] is None or example["label"] < 0
        if unlabelled == seen > 100:
            break  # a hidden test split: no need to read it all
        entry = (-int.from_bytes(_digest(example["image"], seed, b"sample"), "big"), number, example)
        (heapq.heappush if len(smallest) < count else heapq.heappushpop)(smallest, entry)
    if seen == 0:
        raise ValueError(f"{dataset_id} has no images for {name}.")
    if unlabelled == seen:
        logger.warning("%s (%s) has no labels: it is left out.", dataset_id, name)
        return None
    if unlabelled:
        raise ValueError(f"{unlabelled} of {seen} images of {dataset_id} ({name}) have no label: filter them out.")
    logger.warning("%s (%s): %d of %d images are kept for evaluation.", dataset_id, name, len(smallest), seen)
    features = Features({"image": Image(decode=False), "label": stream.features["label"]})
    rows = [example for *_, example in sorted(smallest, key=lambda entry: -entry[0])]
    return Dataset.from_list(rows, features=features)


def _digest(image: dict, seed: int, purpose: bytes) -> bytes:
    data = image_bytes(image)
    key = purpose + str(seed).encode()
    return hashlib.blake2b(image["path"].encode() if data is None else data, digest_size=8, key=key).digest()


def _is_decodable(image: dict) -> bool:
    try:
        decode_rgb(image)
    except UndecodableImageError as error:
        logger.warning("skipped in the stream: %s", error)
        return False
    return True
