"""Are these boxes ones that a detector's own loss can work on? It reads values: for the CPU."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TOLERANCE = 1e-3  # by which rounding may put a box beyond the image


@dataclass(frozen=True)
class BoxCheck:
    """Checks `labels`, a dict of boxes and classes an image, as `batch_checks.check_labels` does one class an image.

    Args:
        needs_a_box: whether a batch must hold one at all, as transformers' own losses ask.
    """

    needs_a_box: bool = True

    def __call__(self, labels: Any, num_images: int, num_labels: int | None = None, first: int | None = None) -> None:
        """Raise a ValueError unless `labels` are N dicts of `class_labels` (n,) in 0..K-1 and `boxes` (n, 4) in [0, 1].

        An image without boxes is right, and nothing is to be found on it.
        """
        if not isinstance(labels, (list, tuple)) or len(labels) != num_images:
            got = f"{type(labels).__name__} of {len(labels)}" if hasattr(labels, "__len__") else type(labels).__name__
            raise ValueError(
                f"labels of a detection model must be a list of {num_images} dicts, one an image, of 'class_labels' "
                f"and 'boxes', as the image processor makes them with annotations=...; got {got}. For one class an "
                "image load the model with AutoModelForImageClassification."
            )
        for index, each in enumerate(labels):
            name = f"image {index} of the batch" if first is None else f"image {first + index} of the data"
            _check_image(each, name, num_labels)
        if self.needs_a_box and not any(len(each["class_labels"]) for each in labels):
            raise ValueError(
                "No image of this batch has a box, which the loss of transformers' detection models does not take: "
                "set a larger batch size, or filter out images without boxes."
            )


def _check_image(labels: Any, name: str, num_labels: int | None) -> None:
    if not isinstance(labels, Mapping) or not {"class_labels", "boxes"} <= set(labels):
        held = sorted(labels) if isinstance(labels, Mapping) else type(labels).__name__
        raise ValueError(
            f"The labels of {name} must hold 'class_labels' and 'boxes', got {held}: give the image processor the "
            "boxes as annotations=[{'image_id': ..., 'annotations': [{'bbox': [x, y, w, h], 'category_id': ...}]}]."
        )
    classes, boxes = labels["class_labels"], labels["boxes"]
    fits = isinstance(classes, Tensor) and isinstance(boxes, Tensor) and classes.dtype == torch.int64
    if not fits or not boxes.is_floating_point() or classes.ndim != 1 or boxes.shape != (len(classes), 4):
        got = [f"{each.dtype} {tuple(each.shape)}" if isinstance(each, Tensor) else type(each).__name__
               for each in (classes, boxes)]  # fmt: skip
        raise ValueError(f"class_labels must be int64 (n,) and boxes float (n, 4), got {got[0]} and {got[1]} ({name}).")
    count = "K" if num_labels is None else num_labels
    bad = classes < 0 if num_labels is None else (classes < 0) | (classes >= num_labels)
    if bad.any():
        raise ValueError(
            f"class_labels must be class indices in 0..{count}-1, got {int(classes[bad][0])} ({name}). Categories that "
            "count from 1, as COCO's do, must be numbered from 0; for a wrong class count load the model with "
            "id2label=... and ignore_mismatched_sizes=True."
        )
    edges = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
    bad = ~boxes.isfinite().all(1) | (edges < -TOLERANCE).any(1) | (edges > 1 + TOLERANCE).any(1)
    bad |= (boxes[:, 2:] <= 0).any(1)
    if bad.any():
        shown = [round(value, 4) for value in boxes[bad][0].tolist()]
        raise ValueError(
            f"boxes must be (centre x, centre y, width, height) as shares of the image, within it and larger than "
            f"nothing; got {shown} ({name}). Boxes in pixels [x, y, w, h] go through the image processor, "
            "annotations=..., which makes shares of them; cut off what lies beyond the image."
        )
