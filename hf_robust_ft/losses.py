"""Per-sample losses an attack climbs: functions of logits (N, K) and labels (N,) that return (N,)."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy in float32, whatever the precision of the logits."""
    return F.cross_entropy(logits.float(), labels, reduction="none")


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"ce": cross_entropy}


def get_loss(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Look a loss up by name.

    Raises:
        ValueError: unknown name; the message lists the valid ones.
    """
    if name not in LOSSES:
        raise ValueError(f"Unknown attack loss {name!r}. Valid losses: {', '.join(LOSSES)}.")
    return LOSSES[name]
