"""Pixel accuracy and mean IoU from what of an image they rest on: right, labelled and predicted pixels of each class.

So much is kept of an image (3, K), int64; both scores are of sums over images, as usual in segmentation.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_robust_ft.evaluation.confidence_intervals import CONFIDENCE
from hf_robust_ft.metrics.robustness import masks

RIGHT, LABELLED, PREDICTED = range(3)
DRAWS = 2000  # of the bootstrap


def pixel_counts(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Of each image and class the right, the labelled and the predicted pixels, (N, 3, K).

    Args:
        predictions: (N, H, W), classes.
        labels: (N, H, W), below 0 where a pixel counts nowhere.

    >>> pixel_counts(torch.tensor([[[0, 1, 1]]]), torch.tensor([[[0, 0, -100]]]), 2).tolist()
    [[[1, 0], [2, 0], [1, 1]]]
    """
    counts = labels >= 0
    labels, predictions = labels.where(counts, num_classes), predictions.where(counts, num_classes)
    right = labels.where(labels == predictions, num_classes)
    found = [F.one_hot(each.flatten(1), num_classes + 1).sum(1) for each in (right, labels, predictions)]
    return torch.stack(found, 1)[..., :num_classes]


def pixel_accuracy(counts: np.ndarray) -> np.ndarray:
    """The share of labelled pixels that are right, (...), of summed counts (..., 3, K)."""
    return masks.pixel_accuracy(counts[..., RIGHT, :], counts[..., LABELLED, :])


def class_ious(counts: np.ndarray) -> np.ndarray:
    """Intersection over union of each class, (..., K), of summed counts; NaN for one neither labelled nor predicted."""
    return masks.class_ious(*_apart(counts))


def mean_iou(counts: np.ndarray) -> np.ndarray:
    """The mean of `class_ious` over the classes that have one, (...), as `evaluate`'s module mean_iou has it.

    >>> float(mean_iou(np.array([[2, 0, 0], [2, 1, 0], [3, 0, 0]])))  # 2 of 3, 0 of 1, and a class that is not there
    0.3333333333333333
    """
    return masks.mean_iou(*_apart(counts))


def _apart(counts: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(counts[..., row, :] for row in (RIGHT, LABELLED, PREDICTED))


def interval(counts: np.ndarray, score: Callable[[np.ndarray], np.ndarray]) -> list[float]:
    """The 95 % interval of a score over images, [low, high].

    The bootstrap of `confidence_intervals.mean_interval`: weights uniform on the simplex over the images and one more
    of their mean size, all wrong for the lower end and all right for the upper one. So it has a width also where all
    images are alike.

    Args:
        counts: (N, 3, K), or (N, E, 3, K) for a score of the whole curve.
        score: of weighted sums (D, ...), one for each draw.
    """
    counts = np.asarray(counts, dtype=np.float64)
    rng = np.random.default_rng(0)  # fixed: reports must reproduce
    weights = rng.standard_exponential((DRAWS, len(counts)))
    further = rng.standard_exponential(DRAWS).reshape(-1, *[1] * (counts.ndim - 1))
    sums = np.tensordot(weights, counts, axes=1)
    mean = counts.mean(0)
    wrong, right = mean.copy(), mean.copy()
    wrong[..., RIGHT, :] = 0
    right[..., RIGHT, :] = right[..., PREDICTED, :] = mean[..., LABELLED, :]
    beyond = (1 - CONFIDENCE) / 2
    low = np.quantile(score(sums + further * wrong), beyond)
    high = np.quantile(score(sums + further * right), 1 - beyond)
    return [round(float(low), 6), round(float(high), 6)]
