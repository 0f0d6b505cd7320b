"""Cross-entropy as attacks climb it: of one class an image, or of one a pixel."""

import torch
import torch.nn.functional as F
from torch import Tensor

_TINY = 1e-12  # the logarithm of 0 must have a gradient


def likeliest(labels: Tensor) -> Tensor:
    """(N,) classes; of shares of classes (N, K) the largest."""
    return labels.argmax(1) if labels.is_floating_point() else labels


def log_cross_entropy(logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """The logarithm of cross-entropy, in float32 whatever the precision of the logits.

    It has its maxima where cross-entropy has them, and gradients of the same direction. Cross-entropy's own gradient
    rounds to zero, or points the wrong way, where an image is classified with a margin above 17; this one does not.

    Shape:
        logits (N, K, ...) and labels (N, ...) -> (N, ...); or logits (N, K) and float32 shares of classes (N, K), as
        mixup makes them.
    """
    logits = logits.float()
    if labels.is_floating_point():
        mixed = F.cross_entropy(logits, labels, reduction="none").clamp(min=_TINY).log()
        # One class alone, where an image was mixed with one of its own: with its precision.
        return torch.where(labels.amax(1) < 1, mixed, log_cross_entropy(logits, likeliest(labels)))
    classes = torch.arange(logits.shape[1], device=logits.device).view(-1, *[1] * (logits.ndim - 2))
    is_label = labels[:, None] == classes
    others = logits.masked_fill(is_label, -torch.inf).logsumexp(1)
    margin = others - logits.gather(1, labels[:, None])[:, 0]
    # Cross-entropy is softplus(margin), and log(softplus(m)) is m up to rounding below -15.
    return torch.where(margin < -15, margin, F.softplus(margin.clamp(min=-15)).log())
