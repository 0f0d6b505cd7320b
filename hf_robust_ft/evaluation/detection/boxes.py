"""Boxes of a detector's answer and of labels, in the units of the image as the model sees it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

MOST_DETECTIONS = 100  # an image, as COCO counts them


def detected_boxes(outputs: Any, num_labels: int, size: tuple[int, int]) -> list[dict[str, Tensor]]:
    """What a DETR-like model found: of each image `boxes` (m, 4) as corners, `scores` (m,) and `labels` (m,).

    As transformers' image processors read it (`post_process_object_detection` without a threshold): of K + 1 logits a
    query, DETR's and YOLOS', the last is no object and each query names its likeliest class; of K (Deformable DETR,
    RT-DETR) each pair of query and class counts by itself. The most certain `MOST_DETECTIONS` are kept.

    Args:
        outputs: `logits` (N, Q, K or K + 1) and `pred_boxes` (N, Q, 4), centres and sizes in [0, 1].
        num_labels: K.
        size: height and width in pixels.

    Raises:
        ValueError: no such outputs, logits of another width, or NaN.
    """
    if getattr(outputs, "pred_boxes", None) is None or getattr(outputs, "logits", None) is None:
        held = list(outputs) if isinstance(outputs, Mapping) else type(outputs).__name__
        raise ValueError(
            f"The model answers with {held}, and a DETR-like detector does with logits and pred_boxes: load a model of "
            "AutoModelForObjectDetection."
        )
    logits, boxes = outputs.logits.detach().float(), corners(outputs.pred_boxes.detach().float(), size)
    if logits.isnan().any() or boxes.isnan().any():
        raise ValueError(
            "The model's logits or boxes are NaN, as it is or under attack, so nothing is detected there. Look for "
            "overflow in the model; where it runs in float16, try bfloat16 or float32."
        )
    if logits.shape[-1] == num_labels + 1:
        scores, labels = logits.softmax(-1)[..., :-1].max(-1)
        scores, kept = scores.topk(min(MOST_DETECTIONS, scores.shape[1]))
        labels = labels.gather(1, kept)
    elif logits.shape[-1] == num_labels:
        scores = logits.sigmoid().flatten(1)
        scores, kept = scores.topk(min(MOST_DETECTIONS, scores.shape[1]))
        kept, labels = kept // num_labels, kept % num_labels
    else:
        raise ValueError(
            f"A detector of {num_labels} classes (config.num_labels) has so many logits a query, or one more for no "
            f"object; got {logits.shape[-1]}."
        )
    boxes = boxes.gather(1, kept[..., None].expand(-1, -1, 4))
    found = zip(boxes.cpu(), scores.cpu(), labels.cpu(), strict=True)
    return [{"boxes": each, "scores": score, "labels": label} for each, score, label in found]


def labelled_boxes(labels: Sequence[Mapping[str, Tensor]], size: tuple[int, int]) -> list[dict[str, Tensor]]:
    """The same of labels as a model takes them: `boxes` (n, 4) as corners and `labels` (n,)."""
    return [
        {"boxes": corners(each["boxes"].float(), size).cpu(), "labels": each["class_labels"].cpu()} for each in labels
    ]


def corners(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., 4) centres and sizes in [0, 1] to left, top, right and bottom in pixels of an image of height and width.

    >>> corners(torch.tensor([[0.5, 0.5, 0.5, 1.0]]), (10, 20)).tolist()
    [[5.0, 0.0, 15.0, 10.0]]
    """
    centres, halves = boxes[..., :2], boxes[..., 2:] / 2
    height, width = size
    scale = torch.tensor([width, height, width, height], dtype=boxes.dtype, device=boxes.device)
    return torch.cat([centres - halves, centres + halves], -1) * scale
