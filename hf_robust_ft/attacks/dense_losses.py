"""What an attack on a segmenter climbs: objectives of logits (N, K, H, W), labels (N, H, W), one value an image (N,).

A pixel with a label below 0 counts nowhere; `ignored_as_negative` makes it so of a model's own `ignore_index`. Each is
a mean over the labelled pixels. What they have in common is cross-entropy's cure: its logarithm, pixel by pixel and of
the mean, whose gradient has the same direction and does not vanish where every pixel is right by a wide margin.

Right pixels are `argmax == label`. Sources: SegPGD (Gu et al. 2022, arXiv 2207.12391), SEA (Croce, Singh & Hein 2024,
arXiv 2306.12941; the spherical loss is of its first version), checked against https://github.com/nmndeep/Robust-Segmentation,
semseg/attacker.py and semseg/utils/attacker.py.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_robust_ft.attacks.cross_entropy import log_cross_entropy

IGNORED = -100  # the label of pixels that count nowhere, inside of attacks
_NOTHING = -1e30  # the logarithm of 0 for a sum with a gradient: of infinities only, that would be NaN


def ignored_as_negative(labels: Tensor, ignore_index: int | None) -> Tensor:
    """Labels (N, H, W) with -100 where they are `ignore_index`, as attacks take them.

    >>> ignored_as_negative(torch.tensor([[[0, 1], [255, -100]]]), 255).tolist()
    [[[0, 1], [-100, -100]]]
    """
    return labels if ignore_index is None else labels.masked_fill(labels == ignore_index, IGNORED)


def right_pixels(predictions: Tensor, labels: Tensor) -> Tensor:
    """How many labelled pixels are right, (N,) int64, of predictions and labels (N, H, W)."""
    return (predictions == labels).sum((1, 2))  # no prediction is below 0


def most_are_wrong(predictions: Tensor, labels: Tensor) -> Tensor:
    """Whether less than half of the labelled pixels are right, (N,) bool: what counts as a fooled image."""
    return 2 * right_pixels(predictions, labels) < labelled_pixels(labels)


def labelled_pixels(labels: Tensor) -> Tensor:
    """How many pixels of labels (N, H, W) have one, (N,) int64."""
    return (labels >= 0).sum((1, 2))


def pixel_ce(logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """The logarithm of the mean cross-entropy over the labelled pixels."""
    return _log_mean(log_cross_entropy(logits, labels.clamp(min=0)), labels >= 0, labels)


def segpgd(logits: Tensor, labels: Tensor, progress: float | None = None) -> Tensor:
    """SegPGD (arXiv 2207.12391, equation 4 and algorithm 1), the logarithm of its mean.

    (1 - t) times the cross-entropy of right pixels, t times that of wrong ones, with t from 0 to 1/2: at first only
    what is still right counts, at last all pixels alike.

    Args:
        progress: share of the steps that are done, in [0, 1); t is half of it. None is 0.
    """
    log_losses, wrong = log_cross_entropy(logits, labels.clamp(min=0)), 0.5 * (progress or 0.0)
    is_right = logits.detach().argmax(1) == labels
    log_weights = torch.where(is_right, math.log(1 - wrong), math.log(wrong) if wrong else _NOTHING)
    return _log_mean(log_losses + log_weights, labels >= 0, labels)


def masked_ce(logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """The logarithm of the mean cross-entropy of the pixels that are still right (arXiv 2306.12941, L_MCE)."""
    is_right = logits.detach().argmax(1) == labels
    return _log_mean(log_cross_entropy(logits, labels.clamp(min=0)), is_right, labels)


def masked_ce_balanced(logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """`masked_ce` with each class weighted by the inverse of its pixels (arXiv 2306.12941, L_MCE-Bal): for mIoU.

    There the pixels are counted over the data set; here in the image's own mask, which is all that an attack sees.
    """
    is_right = logits.detach().argmax(1) == labels
    counts = torch.zeros(logits.shape[:2], device=logits.device)
    flat = labels.clamp(min=0).flatten(1)
    counts = counts.scatter_add(1, flat, (labels >= 0).flatten(1).float())
    log_weights = -counts.clamp(min=1).log().gather(1, flat).view_as(labels)
    return _log_mean(log_cross_entropy(logits, labels.clamp(min=0)) + log_weights, is_right, labels)


def js(logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """The mean Jensen-Shannon divergence between answer and label (arXiv 2306.12941, L_JS).

    Of p, the probability of the label, it is log 2 + (p log p - (1 + p) log(1 + p)) / 2 a pixel: it levels off as p
    goes to 0, so pixels that are wrong for good stop counting by themselves.
    """
    log_p = logits.float().log_softmax(1).gather(1, labels.clamp(min=0)[:, None])[:, 0]
    p = log_p.exp()
    return _mean(math.log(2) + (p * log_p - (1 + p) * p.log1p()) / 2, labels >= 0, labels)


def masked_spherical(logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """Minus the label's logit over the norm of all, of pixels still right (arXiv 2306.12941, first version)."""
    is_right = logits.detach().argmax(1) == labels
    label = F.normalize(logits.float(), dim=1).gather(1, labels.clamp(min=0)[:, None])[:, 0]
    return _mean(-label, is_right, labels)


def pixel_kl(logits: Tensor, labels: Tensor, reference: Tensor) -> Tensor:
    """KL(q ‖ p) a pixel, the mean over labelled pixels, (N,), in float32.

    Args:
        logits: (N, K, H, W), of p.
        labels: (N, H, W), which pixels count.
        reference: (N, K, H, W), the logarithm of q.
    """
    divergence = F.kl_div(logits.float().log_softmax(1), reference, reduction="none", log_target=True).sum(1)
    return _mean(divergence, labels >= 0, labels)


def _mean(values: Tensor, counts: Tensor, labels: Tensor) -> Tensor:
    """The sum of values (N, H, W) where `counts`, over the number of labelled pixels, (N,)."""
    return values.masked_fill(~counts, 0.0).sum((1, 2)) / labelled_pixels(labels).clamp(min=1)


def _log_mean(log_values: Tensor, counts: Tensor, labels: Tensor) -> Tensor:
    """The logarithm of the same, of values given by theirs; about -1e30 where none counts, without a gradient."""
    total = log_values.masked_fill(~counts, _NOTHING).flatten(1).logsumexp(1)
    return total - labelled_pixels(labels).clamp(min=1).log()
