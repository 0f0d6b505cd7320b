"""From `image` and `objects` to `pixel_values` and `labels`: by the checkpoint's image processor, boxes and all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset, Image

from hf_robust_ft.data.images import decode_rgb, file_of


def with_pixel_values_and_boxes(dataset: Dataset, processor: Any, order: Sequence[int] | None = None) -> Dataset:
    """The dataset with a lazy transform to `pixel_values` (C, H, W) and `labels`, a dict of `class_labels` and `boxes`.

    What lies beyond an image's edges is cut off its boxes; a box that then is nothing is left out. A `pixel_mask`
    comes along where the processor pads. Train with `remove_unused_columns=False`.

    Args:
        dataset: with columns `image` and `objects`, of `bbox` [x, y, width, height] in pixels and `category`.
        processor: the checkpoint's image processor.
        order: the model's index of each category; None where it is the same.

    Raises:
        ValueError: a processor that takes no boxes; when read, an image that cannot be decoded.
    """
    if not hasattr(processor, "post_process_object_detection"):
        raise ValueError(
            f"{type(processor).__name__} is no image processor for object detection: give the detection checkpoint's, "
            "AutoImageProcessor.from_pretrained(...)."
        )
    dataset = dataset.cast_column("image", Image(decode=False))
    return dataset.with_transform(_ToBoxes(processor, None if order is None else tuple(order)))


@dataclass
class _ToBoxes:
    """A class rather than a closure, since loader workers that are spawned receive it by pickle."""

    processor: Any
    order: tuple[int, ...] | None = None

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        examples = [self._example(*cells) for cells in zip(batch["image"], batch["objects"], strict=True)]
        return {name: [example[name] for example in examples] for name in examples[0]}

    def _example(self, image: dict, objects: Mapping[str, list]) -> dict[str, Any]:
        picture = decode_rgb(image)
        told = self._annotations(objects, picture.width, picture.height)
        found = self.processor([picture], annotations=[{"image_id": 0, "annotations": told}], return_tensors="pt")
        labels = found["labels"][0]
        if len(labels["boxes"]) != len(told):
            raise ValueError(f"{file_of(image)}: the image processor left out some of the boxes {told}.")
        example = {
            "pixel_values": found["pixel_values"][0],
            "labels": {"class_labels": labels["class_labels"].long(), "boxes": labels["boxes"].float()},
        }
        mask = found.get("pixel_mask")
        pads = mask is not None and not bool(torch.as_tensor(mask[0]).all())
        return example | ({"pixel_mask": torch.as_tensor(mask[0])} if pads else {})

    def _annotations(self, objects: Mapping[str, list], width: int, height: int) -> list[dict[str, Any]]:
        """COCO's, within the image."""
        told = []
        for (x, y, w, h), category in zip(objects["bbox"], objects["category"], strict=True):
            left, top, right, bottom = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
            if right > left and bottom > top:
                box = [left, top, right - left, bottom - top]
                label = category if self.order is None else self.order[category]
                told.append({"bbox": box, "category_id": label, "area": box[2] * box[3], "iscrowd": 0})
        return told
