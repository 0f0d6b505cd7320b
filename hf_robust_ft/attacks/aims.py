"""What a run of an attack aims at, or compares with: found out before its first step, without a gradient."""

from collections.abc import Callable

import torch
from torch import Tensor

from hf_robust_ft.attacks.losses import AttackLoss


def reference_of(loss: AttackLoss, logits_fn: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor | None:
    """What the loss compares with: the logarithm of the probabilities at the images, (N, K), for one forward.

    Raises:
        ValueError: it is of features, and the function has none to compare with.
    """
    if not loss.needs_reference:
        return None
    if loss.of_features:
        if (reference := getattr(logits_fn, "reference", None)) is None:
            raise ValueError(
                f"The loss {loss.name!r} compares features with a frozen encoder's, which training with "
                "objective='fare' has and this function has not: attack with loss='ce'."
            )
        return reference
    with torch.no_grad():
        return logits_fn(pixels).float().log_softmax(1)


def target_classes(logits_fn: Callable[[Tensor], Tensor], pixels: Tensor, labels: Tensor, count: int) -> list[Tensor]:
    """The `count` likeliest wrong classes of each image, likeliest first, as tensors (N,); fewer if K is small."""
    with torch.no_grad():
        logits = logits_fn(pixels)
    is_label = labels[:, None] == torch.arange(logits.shape[1], device=logits.device)
    wrong = logits.float().masked_fill(is_label, -torch.inf)
    return list(wrong.topk(min(count, logits.shape[1] - 1), dim=1).indices.unbind(1))
