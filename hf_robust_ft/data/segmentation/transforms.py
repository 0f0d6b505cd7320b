"""From `image` and `mask` to `pixel_values` and `labels`: varied and resized alike, normalised by the processor."""

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset, Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from hf_robust_ft.data.augmentation import AugmentationState
from hf_robust_ft.data.images import decode_rgb, file_of, image_bytes
from hf_robust_ft.data.segmentation.augmentation import JOINT_AUGMENTATION_WORDS, joint_augmentation
from hf_robust_ft.data.segmentation.masks import BadMaskError, MaskReader
from hf_robust_ft.provenance.choices import check_choice
from hf_robust_ft.schedules.sample_ids import SAMPLE_ID, content_id


def with_pixel_values_and_masks(
    dataset: Dataset, processor: Any, reader: MaskReader, augmentation: str = "none", sample_ids: bool = False
) -> Dataset:
    """The dataset with a lazy transform to `pixel_values` (C, H, W) and `labels` (H, W) int64.

    A mask is resized to what the processor makes of its image, by nearest neighbours: by the processor itself, where
    it takes `segmentation_maps`. Train with `remove_unused_columns=False` and the callback `SeededAugmentation`.

    Args:
        dataset: with columns `image` and `mask`.
        processor: the checkpoint's image processor.
        reader: makes labels of masks.
        augmentation: a key of `JOINT_AUGMENTATION_WORDS`; "none" for evaluation.
        sample_ids: also make `sample_id` of the image's bytes, for per-sample schedules.

    Raises:
        ValueError: unknown augmentation, or a processor that crops or pads images and takes no masks; when read, an
            image or a mask that cannot be used (`UndecodableImageError`, `BadMaskError`).
    """
    check_choice("augmentation", augmentation, JOINT_AUGMENTATION_WORDS)
    takes_masks = "segmentation_maps" in inspect.signature(processor.preprocess).parameters
    moved = [name for name in ("do_center_crop", "do_pad") if getattr(processor, name, False)]
    if moved and not takes_masks:
        raise ValueError(
            f"{type(processor).__name__} has {moved[0]}, and takes no segmentation_maps: masks cannot follow its "
            f"images. Set {moved[0]}=False in preprocessor_config.json, or use a SegformerImageProcessor."
        )
    dataset = dataset.cast_column("image", Image(decode=False))
    if isinstance(dataset.features["mask"], Image):
        dataset = dataset.cast_column("mask", Image(decode=False))
    return dataset.with_transform(_ToTensors(processor, reader, augmentation, takes_masks, sample_ids))


@dataclass
class _ToTensors:
    """A class rather than a closure, since loader workers that are spawned receive it by pickle."""

    processor: Any
    reader: MaskReader
    augmentation: str
    takes_masks: bool
    sample_ids: bool = False
    state: AugmentationState = field(default_factory=AugmentationState)

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        pairs = [self._pair(*cells) for cells in zip(batch["image"], batch["mask"], strict=True)]
        made = {"pixel_values": [], "labels": []}
        for image, mask in pairs:
            pixel_values, labels = self._processed(image, mask)
            made["pixel_values"].append(pixel_values)
            made["labels"].append(labels)
        if self.sample_ids:
            made[SAMPLE_ID] = batch.get(SAMPLE_ID) or [content_id(image_bytes(value)) for value in batch["image"]]
        return made

    def _pair(self, image: dict, mask: Any) -> tuple[Any, tv_tensors.Mask]:
        picture, labels = decode_rgb(image), torch.from_numpy(self.reader(mask))
        if labels.shape != (picture.height, picture.width):
            raise BadMaskError(size_mismatch(file_of(image), (picture.height, picture.width), tuple(labels.shape)))
        labels = tv_tensors.Mask(labels)
        varied = joint_augmentation(self.augmentation, self.reader.label_for_ignored)
        if varied is None:
            return picture, labels
        with self.state.drawing_for(image_bytes(image) or image["path"].encode()):
            return varied(picture, labels)

    def _processed(self, image: Any, mask: Tensor) -> tuple[Tensor, Tensor]:
        if self.takes_masks:
            reduces = {"do_reduce_labels": False} if hasattr(self.processor, "do_reduce_labels") else {}
            maps = [mask.as_subclass(Tensor).to(torch.int32).numpy()]
            found = self.processor([image], segmentation_maps=maps, return_tensors="pt", **reduces)
            return found["pixel_values"][0], torch.as_tensor(found["labels"][0]).long()
        pixel_values = self.processor([image], return_tensors="pt")["pixel_values"][0]
        size = list(pixel_values.shape[-2:])
        resized = v2.functional.resize(mask[None], size, interpolation=InterpolationMode.NEAREST_EXACT)[0]
        return pixel_values, resized.as_subclass(Tensor).long()


def size_mismatch(name: str, image: tuple[int, int], mask: tuple[int, int]) -> str:
    """What to say of a mask of another size than its image, both (height, width)."""
    return (
        f"{name}: the mask has {mask[0]} x {mask[1]} pixels (height x width), its image {image[0]} x {image[1]} "
        "(upright, as EXIF says). Make the mask anew at the image's size, by nearest neighbours if you resize it"
    )
