"""The id of every training image, for what is remembered per image: a column `sample_id` beside `pixel_values`."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

SAMPLE_ID = "sample_id"
HOW_TO_ADD = (
    "A per-sample schedule needs a stable id for each image. Let with_pixel_values(dataset, processor, "
    f"sample_ids=True) make them from the images, or add a column, dataset.add_column({SAMPLE_ID!r}, "
    f"list(range(len(dataset)))), hand it on in your transform, and set remove_unused_columns=False."
)


def content_id(content: bytes) -> int:
    """An id that follows from an image's bytes alone: the same in any order, split and run.

    >>> content_id(b"an image") == content_id(b"an image") != content_id(b"another")
    True
    """
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") >> 1  # fits into an int64


@dataclass(frozen=True)
class IdentifyingCollator:
    """A data collator that adds the examples' `sample_id` (whole numbers or strings) to the batch of another.

    Raises:
        ValueError: an example has none; the message says how to add one.
    """

    collate: Callable[[list], Any]

    def __call__(self, examples: list) -> Any:
        ids = [example.get(SAMPLE_ID) if isinstance(example, Mapping) else None for example in examples]
        if None in ids:
            held = sorted(examples[0]) if isinstance(examples[0], Mapping) else type(examples[0]).__name__
            raise ValueError(f"An example has no {SAMPLE_ID!r}, but {held}. {HOW_TO_ADD}")
        numbers = [content_id(each.encode()) if isinstance(each, str) else int(each) for each in ids]
        return {**self.collate(examples), SAMPLE_ID: torch.tensor(numbers, dtype=torch.int64)}


def check_identified(ids: torch.Tensor | None, batch: Mapping[str, Any]) -> None:
    """Raise unless a batch came with the ids of its images.

    Raises:
        ValueError: it did not; a data loader of the user's own has another collator.
    """
    if ids is None:
        raise ValueError(
            f"A per-sample schedule needs the {SAMPLE_ID!r} of every image, and this batch holds {sorted(batch)}: a "
            "get_train_dataloader of your own leaves them out. Return super().get_train_dataloader() there, or give "
            "your loader collate_fn=IdentifyingCollator(self.data_collator) from hf_robust_ft.schedules.sample_ids."
        )


def without_ids(batch: Mapping[str, Any]) -> tuple[dict[str, Any], torch.Tensor | None]:
    """The batch as the model takes it, and the ids (N,) of its images, where it held any."""
    return {key: value for key, value in batch.items() if key != SAMPLE_ID}, batch.get(SAMPLE_ID)
