"""What an attack climbs: objectives of logits (N, K) and labels (N,), one value (N,) an image."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def log_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The logarithm of cross-entropy, in float32 whatever the precision of the logits.

    It has its maxima where cross-entropy has them, and gradients of the same direction. Cross-entropy's own gradient
    rounds to zero, or points the wrong way, where an image is classified with a margin above 17; this one does not.
    """
    logits = logits.float()
    is_label = labels[:, None] == torch.arange(logits.shape[1], device=logits.device)
    others = logits.masked_fill(is_label, -torch.inf).logsumexp(1)
    margin = others - logits.gather(1, labels[:, None])[:, 0]
    # Cross-entropy is softplus(margin), and log(softplus(m)) is m up to rounding below -15.
    return torch.where(margin < -15, margin, F.softplus(margin.clamp(min=-15)).log())


@dataclass(frozen=True)
class AttackLoss:
    """A loss as an attack uses it.

    Attributes:
        objective: (logits, labels) -> (N,), what is compared and differentiated.
        value: objective -> the loss as it is reported, an increasing function.
    """

    objective: Callable[[Tensor, Tensor], Tensor]
    value: Callable[[Tensor], Tensor]


LOSSES: dict[str, AttackLoss] = {"ce": AttackLoss(log_cross_entropy, torch.exp)}


def get_loss(name: str) -> AttackLoss:
    """Look a loss up by name.

    Raises:
        ValueError: unknown name; the message lists the valid ones.
    """
    if name not in LOSSES:
        raise ValueError(f"Unknown attack loss {name!r}. Valid losses: {', '.join(LOSSES)}.")
    return LOSSES[name]
