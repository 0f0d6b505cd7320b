"""Find the images that cannot be decoded, by decoding all of them once."""

import logging

from datasets import Dataset, Features, Image, Value

from hf_robust_ft.data.images import UndecodableImageError, decode_rgb, file_of

logger = logging.getLogger(__name__)


def without_bad_images(dataset: Dataset, dataset_id: str, split: str) -> tuple[Dataset, list[dict]]:
    """The dataset without the images that cannot be decoded, and what these are (`index`, `file`, `reason`).

    Reads and decodes every image once; where the dataset lies on disk, the result is cached beside it.

    Raises:
        ValueError: none can be decoded.
    """
    encoded = dataset.select_columns("image").cast_column("image", Image(decode=False))
    problems = encoded.map(
        _problem,
        input_columns="image",
        remove_columns="image",
        features=Features({"file": Value("string"), "reason": Value("string")}),
        desc=f"Decoding {split}",
    )
    reasons = problems["reason"]
    bad = [
        {"index": index, "file": problems[index]["file"], "reason": reason}
        for index, reason in enumerate(reasons)
        if reason
    ]
    if not bad:
        return dataset, []
    if len(bad) == len(dataset):
        raise ValueError(f"None of the {len(bad)} images of {dataset_id} ({split}) can be decoded: {bad[0]['reason']}.")
    logger.warning(
        "%s (%s): %d of %d images cannot be decoded and are skipped.", dataset_id, split, len(bad), len(dataset)
    )
    for entry in bad:
        logger.warning("skipped: image %d of %s, %s", entry["index"], split, entry["reason"])
    skipped = {entry["index"] for entry in bad}
    return dataset.select([index for index in range(len(dataset)) if index not in skipped]), bad


def _problem(image: dict | None) -> dict[str, str | None]:
    try:
        decode_rgb(image)
    except UndecodableImageError as error:
        return {"file": file_of(image), "reason": str(error)}
    return {"file": None, "reason": None}
