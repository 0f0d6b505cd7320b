"""From `image` to `pixel_values`: augmentation on the image, then exactly the checkpoint's own image processor."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, Image, IterableDataset
from PIL import Image as PILImage

from hf_robust_ft.data.augmentation import AUGMENTATIONS, AugmentationState
from hf_robust_ft.data.images import UndecodableImageError, decode_rgb, image_bytes
from hf_robust_ft.provenance.choices import check_choice
from hf_robust_ft.schedules.sample_ids import SAMPLE_ID, content_id

STREAM_BATCH = 16  # images transformed at a time; a stream may end in fewer


def with_pixel_values(
    dataset: Dataset | IterableDataset, processor: Any, augmentation: str = "none", sample_ids: bool = False
) -> Dataset | IterableDataset:
    """The dataset with a lazy transform to `pixel_values` (C, H, W) and `labels`.

    Images of any kind become upright RGB first (`data/images.py`). Train on it with `remove_unused_columns=False`, and
    with the callback `SeededAugmentation` for augmentations that do not depend on the number of workers.

    Args:
        dataset: with columns `image` and `label`.
        processor: the checkpoint's image processor.
        augmentation: a key of `AUGMENTATIONS`; "none" for evaluation.
        sample_ids: also make `sample_id`, for per-sample schedules: a column of that name if there is one, else what
            the image's bytes give, so that identical images share one.

    Raises:
        ValueError: unknown augmentation; when read, an image that cannot be decoded (`UndecodableImageError`, naming
            dataset, index and file).
    """
    check_choice("augmentation", augmentation, AUGMENTATIONS)
    name = getattr(dataset.features["image"], "id", None) or "the dataset"
    # Undecoded, so that an image that fails can be named, and each image's bytes can seed its augmentation.
    dataset = dataset.cast_column("image", Image(decode=False))
    if isinstance(dataset, IterableDataset):
        transform = _ToPixelValues(processor, AUGMENTATIONS[augmentation], name, sample_ids=sample_ids)
        return dataset.map(transform, batched=True, batch_size=STREAM_BATCH, remove_columns=list(dataset.features))
    images = dataset.with_format(None).select_columns("image")
    transform = _ToPixelValues(processor, AUGMENTATIONS[augmentation], name, images, sample_ids)
    return dataset.with_transform(transform)


@dataclass
class _ToPixelValues:
    """A class rather than a closure, since loader workers that are spawned receive it by pickle."""

    processor: Any
    augment: Callable | None
    name: str
    images: Dataset | None = None  # to find the index of an image that fails; a stream has none
    sample_ids: bool = False
    state: AugmentationState = field(default_factory=AugmentationState)

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        images = [self._image(value) for value in batch["image"]]
        pixel_values = self.processor(images, return_tensors="pt")["pixel_values"]
        made = {"pixel_values": list(pixel_values), "labels": batch["label"]}
        if self.sample_ids:
            made[SAMPLE_ID] = batch.get(SAMPLE_ID) or [content_id(_content(value)) for value in batch["image"]]
        return made

    def _image(self, value: dict) -> PILImage.Image:
        try:
            image = decode_rgb(value)
        except UndecodableImageError as error:
            index = next((index for index, row in enumerate(self.images or ()) if row["image"] == value), None)
            where = self.name if index is None else f"{index} of {self.name}"
            raise UndecodableImageError(
                f"Image {where} cannot be decoded: {error}. Replace the file, or load the dataset with "
                "skip_bad_images=True."
            ) from error.__cause__
        if self.augment is None:
            return image
        with self.state.drawing_for(_content(value)):
            return self.augment(image)


def _content(value: dict) -> bytes:
    """What tells an undecoded image from others."""
    return image_bytes(value) or value["path"].encode()
