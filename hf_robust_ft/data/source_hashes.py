"""Which image files a data set holds, whatever a model's preprocessing makes of them."""

import hashlib
from typing import Any

from datasets import Dataset, Image

from hf_robust_ft.data.images import image_bytes
from hf_robust_ft.provenance.image_hashes import BYTES, combined_hash


def source_digest(dataset: Any) -> str | None:
    """16 hex digits for the files of the column `image`, whatever their order; None of what is no `datasets.Dataset`
    with such a column.

    Reads every file once and decodes none. With transforms (`with_pixel_values`) or without, it is the same.
    """
    if not isinstance(dataset, Dataset) or not isinstance(dataset.features.get("image"), Image):
        return None
    images = dataset.with_format(None).select_columns("image").cast_column("image", Image(decode=False))
    contents = (image_bytes(row["image"]) for row in images)
    digests = [None if content is None else hashlib.sha256(content).hexdigest()[: 2 * BYTES] for content in contents]
    return None if None in digests else combined_hash(digests)
