"""Look at every pair of image and mask once: which cannot be used, and which labels there are."""

import logging
from collections.abc import Mapping
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

from hf_robust_ft.data.images import UndecodableImageError, decode_rgb, file_of, image_bytes
from hf_robust_ft.data.segmentation.masks import BadMaskError, decode_mask
from hf_robust_ft.data.segmentation.transforms import size_mismatch

logger = logging.getLogger(__name__)


class LargestLabel(NamedTuple):
    """The largest label of a split, and which of its pairs holds it, in words."""

    label: int
    holder: str


def usable_pairs(
    dataset: Dataset, dataset_id: str, split: str, *, ignore_index: int, reduce_labels: bool, skip_bad_images: bool
) -> tuple[Dataset, list[dict], LargestLabel]:
    """The pairs that can be used, what the others are (`index`, `file`, `reason`), and the largest label.

    Reads every mask once, and decodes every image as well with `skip_bad_images`; where the dataset lies on disk, the
    result is cached beside it.

    Raises:
        ValueError: a pair that cannot be used without `skip_bad_images`, negative labels, or no usable pair at all.
    """
    encoded = dataset.cast_column("image", Image(decode=False))
    if isinstance(encoded.features["mask"], Image):
        encoded = encoded.cast_column("mask", Image(decode=False))
    found = encoded.map(
        _look,
        fn_kwargs={"ignore_index": ignore_index, "reduce_labels": reduce_labels, "decodes": skip_bad_images},
        remove_columns=encoded.column_names,
        features=Features({"file": Value("string"), "reason": Value("string"), "low": Value("int64"),
                           "high": Value("int64")}),
        desc=f"Reading masks of {split}",
    )  # fmt: skip
    table = found.with_format("arrow")[:].to_pydict()
    bad = [
        {"index": index, "file": table["file"][index], "reason": reason}
        for index, reason in enumerate(table["reason"])
        if reason
    ]
    if bad and (not skip_bad_images or len(bad) == len(dataset)):
        raise BadMaskError(
            f"{len(bad)} of {len(dataset)} pairs of {dataset_id} ({split}) cannot be used; pair {bad[0]['index']}: "
            f"{bad[0]['reason']}." + ("" if len(bad) == len(dataset) else " skip_bad_images leaves such pairs out.")
        )
    for entry in bad:
        logger.warning("skipped: pair %d of %s (%s), %s", entry["index"], dataset_id, split, entry["reason"])
    lowest, highest = min(table["low"]), max(table["high"])  # 0 of those that cannot be used
    if lowest < 0:
        index = table["low"].index(lowest)
        raise BadMaskError(
            f"Pair {index} of {dataset_id} ({split}) has the label {lowest}: name it as ignore_index, if these pixels "
            "are to be left out."
        )
    skipped = {entry["index"] for entry in bad}
    if skipped:
        dataset = dataset.select([index for index in range(len(dataset)) if index not in skipped])
    holder = table["high"].index(highest)
    return dataset, bad, LargestLabel(highest, f"pair {holder}, {table['file'][holder]}")


def _look(pair: Mapping[str, Any], ignore_index: int, reduce_labels: bool, decodes: bool) -> dict[str, Any]:
    told = {"file": file_of(pair["image"]), "reason": None, "low": 0, "high": 0}
    try:
        image = decode_rgb(pair["image"]) if decodes else None
        size = _size(pair["image"]) if image is None else (image.height, image.width)
        mask = decode_mask(pair["mask"])
    except (BadMaskError, UndecodableImageError) as error:
        return told | {"reason": str(error)}
    if mask.shape != size:
        return told | {"reason": size_mismatch(told["file"], size, mask.shape)}
    labels = np.unique(mask)
    labels = labels[labels != ignore_index].astype(np.int64)
    labels = labels[labels != 0] - 1 if reduce_labels else labels
    if not len(labels):
        left = f"label {ignore_index}" + (" or 0, which reduce_labels leaves out" if reduce_labels else "")
        return told | {"reason": f"{told['file']}: no pixel of its mask is labelled: all have {left}"}
    return told | {"low": int(labels[0]), "high": int(labels[-1])}


def _size(value: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of an upright image, from its header alone."""
    data = image_bytes(value)
    if data is None:
        image = decode_rgb(value)
        return image.height, image.width
    try:
        with PILImage.open(BytesIO(data)) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) >= 5
    except (OSError, SyntaxError, ValueError) as error:
        raise UndecodableImageError(f"{file_of(value)}: not an image file that Pillow can read") from error
    return (width, height) if turned else (height, width)
