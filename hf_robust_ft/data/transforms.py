"""From `image` to `pixel_values`: augmentation on the image, then exactly the checkpoint's own image processor."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from torchvision.transforms import v2

# The paper's: flip 0.5, colour jitter 0.25, a small rotation (2 degrees in the group's sibling code base).
AUGMENTATIONS: dict[str, Callable | None] = {
    "none": None,
    "paper": v2.Compose(
        [
            v2.RandomHorizontalFlip(0.5),
            v2.ColorJitter(brightness=0.25, contrast=0.25, saturation=0.25),
            v2.RandomRotation(2),
        ]
    ),
}


def with_pixel_values(dataset: Dataset, processor: Any, augmentation: str = "none") -> Dataset:
    """The dataset with a lazy transform to `pixel_values` (C, H, W) and `labels`.

    Train on it with `remove_unused_columns=False`.

    Args:
        dataset: with columns `image` and `label`.
        processor: the checkpoint's image processor.
        augmentation: a key of `AUGMENTATIONS`; "none" for evaluation.

    Raises:
        ValueError: unknown augmentation.
    """
    if augmentation not in AUGMENTATIONS:
        raise ValueError(f"Unknown augmentation {augmentation!r}. Valid: {', '.join(AUGMENTATIONS)}.")
    return dataset.with_transform(_ToPixelValues(processor, AUGMENTATIONS[augmentation]))


@dataclass
class _ToPixelValues:
    """A class rather than a closure, since loader workers that are spawned receive it by pickle."""

    processor: Any
    augment: Callable | None

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        images = [image.convert("RGB") for image in batch["image"]]
        if self.augment is not None:
            images = [self.augment(image) for image in images]
        pixel_values = self.processor(images, return_tensors="pt")["pixel_values"]
        return {"pixel_values": list(pixel_values), "labels": batch["label"]}
