"""Adversarial weight perturbation (Wu et al., NeurIPS 2020, arXiv 2004.05884), round the step of any objective.

    v = gamma * ‖w‖ * g / ‖g‖ for each layer's weights w, g the gradient of the objective on the attacked batch

The step's gradient is that at w + v, and it is applied to w. Checked against the authors' code for TRADES
(trades_AWP/train_trades_cifar.py; their utils_awp.py as later repositories keep it): the objective's whole loss, in
training mode, without a trace in BatchNorm's statistics; matrices and kernels whose name has "weight", no others; gamma
0.005, after 10 epochs. Theirs steps from w + v and takes v away afterwards: the same but for what weight decay decays.
"""

from typing import Any

import torch
from torch import Tensor, nn

from hf_robust_ft.training.objectives.passes import Loss, Objective, Passes
from hf_robust_ft.training.tuning.batch_norm import batch_norms

TINY = 1e-20  # in denominators: a layer without a gradient stays


class WeightPerturbation:
    """Moves a model's weights for the length of one training step; `restore` brings them back bit for bit.

    Args:
        gamma: the length of a layer's move over that of its weights.
        accelerator: over whose processes the gradient is a mean, as the step's own is.
    """

    def __init__(self, gamma: float, accelerator: Any):
        self.gamma, self._accelerator = gamma, accelerator
        self._kept: list[tuple[Tensor, Tensor]] = []

    def climb(self, model: nn.Module, loss: Tensor) -> None:
        """Move the weights to where the loss, of the unwrapped model at hand, rises most.

        Costs a gradient of the weights and a copy of them; no host sync, and no `.grad` is touched.
        """
        weights = perturbed_weights(model)
        found = torch.autograd.grad(loss, weights, allow_unused=True)
        gradients = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)]
        if self._accelerator.num_processes > 1:
            flat = self._accelerator.reduce(torch.cat([each.flatten() for each in gradients]), "mean")
            parts = flat.split([each.numel() for each in gradients])
            gradients = [part.view_as(each) for part, each in zip(parts, gradients, strict=True)]
        with torch.no_grad():
            self._kept = [(each, each.clone()) for each in weights]
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.add_(gradient * (self.gamma * weight.norm() / (gradient.norm() + TINY)))

    @torch.no_grad()
    def restore(self) -> None:
        """The weights as they were; nothing where they were not moved."""
        for weight, own in self._kept:
            weight.copy_(own)
        self._kept = []


def perturbed_weights(model: nn.Module) -> list[nn.Parameter]:
    """What AWP moves: the trained matrices and kernels that are called weight."""
    return [
        each for name, each in model.named_parameters() if each.requires_grad and each.ndim > 1 and "weight" in name
    ]


def perturbed(
    objective: Objective, perturbation: WeightPerturbation, model: nn.Module, through: nn.Module
) -> Objective:
    """The objective at the weights at which it is worst; as it is for a batch that is not attacked.

    Args:
        model: the unwrapped model.
        through: what its passes beside the wrapped one's go through.
    """

    def worst(passes: Passes, clean: Tensor, adversarial: Tensor | None) -> Loss:
        if adversarial is not None:
            statistics = [(each, each.clone()) for module in batch_norms(model) for each in module.buffers()]
            found = objective(passes.through(through), clean, adversarial)
            perturbation.climb(model, found.total)
            for buffer, own in statistics:
                buffer.copy_(own)
        return objective(passes, clean, adversarial)

    return worst
