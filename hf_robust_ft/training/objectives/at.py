"""Adversarial training (Madry et al. 2018, arXiv 1706.06083): Trainer's loss on adversarial images."""

from torch import Tensor

from hf_robust_ft.training.objectives.passes import Loss, Passes


def at(passes: Passes, clean: Tensor, adversarial: Tensor | None) -> Loss:
    """L(xa); L(x) without an attack. See `Objective`."""
    found = passes(clean if adversarial is None else adversarial)
    return Loss(found.loss, found.outputs)
