"""TWINS (arXiv 2303.11135): any objective, twice; half the batch through BatchNorm that keeps what pretraining knew.

    total = lambda * objective(first half, frozen branch) + objective(second half, adaptive branch)

Each half has its own mean, so two halves cost what one batch does. The authors divide KL over half a batch by all of
its images: their beta of 6 is our 3. The attack, evaluation and the saved model are of the adaptive branch.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hf_robust_ft.training.objectives.hidden import hide
from hf_robust_ft.training.objectives.passes import Loss, Objective, Passes
from hf_robust_ft.training.tuning.batch_norm import batch_norms, has_statistics

FROZEN = "frozen"  # name of a BatchNorm's twin


class Twin:
    """Mixed into a BatchNorm's own class: the layer as it was, and a frozen twin that stands in for it on demand.

    The twin normalises by the pretrained running statistics for ever, and trains a weight and a bias of its own.
    """

    goes_frozen = False

    def forward(self, *args, **kwargs):
        return self.frozen(*args, **kwargs) if self.goes_frozen else super().forward(*args, **kwargs)

    def train(self, mode: bool = True):
        super().train(mode)
        self.frozen.eval()
        return self


@cache
def _twin_class(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"{kind.__name__}WithTwin", (Twin, kind), {})


def add_twins(model: nn.Module, trains: bool = True) -> nn.Module:
    """Give every BatchNorm of a model a frozen twin, in place; `state_dict()`, names and logits stay what they are.

    Args:
        trains: whether the twins' weights and biases are trained, where those of the BatchNorm are.

    Raises:
        ValueError: there is no BatchNorm, or one without running statistics to keep.
    """
    norms = _outermost(model, batch_norms(model))
    if not norms:
        kinds = sorted({type(each).__name__ for each in model.modules() if "Norm" in type(each).__name__})
        raise ValueError(
            f"TWINS pairs BatchNorm layers, and {type(model).__name__} has none ({', '.join(kinds) or 'no norms'}): "
            "leave twins_lambda unset and use objective=trades."
        )
    without = [name for name, module in norms.items() if not has_statistics(module) or is_lazy(module.running_var)]
    if without:
        raise ValueError(
            f"TWINS keeps BatchNorm's pretrained statistics, and {len(without)} layers of {type(model).__name__} have "
            f"none, first {without[0]}: load pretrained weights, or leave twins_lambda unset."
        )
    for module in norms.values():
        frozen = copy.deepcopy(module).eval()
        if not trains:
            frozen.requires_grad_(False)
        module.__class__ = _twin_class(type(module))
        module.add_module(FROZEN, frozen)
        hide(module, FROZEN)
    return model


def twins(objective: Objective, weight: float, model: nn.Module) -> Objective:
    """An objective of both branches, of a model with twins.

    A batch of one image goes through both branches: under DDP no process may leave out what others use.

    Args:
        weight: lambda, of the frozen branch; 0 leaves it out, and the first half of the batch with it.
        model: the unwrapped model, with its twins.
    """

    def both(passes: Passes, clean: Tensor, adversarial: Tensor | None) -> Loss:
        def part(rows: slice) -> Loss:
            return objective(passes.rows(rows), clean[rows], None if adversarial is None else adversarial[rows])

        half = len(clean) // 2
        frozen = None
        if weight > 0:
            with through_frozen(model):
                frozen = part(slice(0, max(half, 1)))
        adaptive = part(slice(half, None))
        if frozen is None:
            return adaptive
        parts = {"loss_frozen": frozen.total.detach(), "loss_adaptive": adaptive.total.detach(), **adaptive.parts}
        return Loss(weight * frozen.total + adaptive.total, adaptive.outputs, parts)

    return both


@contextmanager
def through_frozen(model: nn.Module) -> Iterator[None]:
    """Let every forward within go through the frozen twins."""
    twins = [module for module in model.modules() if isinstance(module, Twin)]
    try:
        for module in twins:
            module.goes_frozen = True
        yield
    finally:
        for module in twins:
            module.goes_frozen = False


def _outermost(model: nn.Module, norms: list[nn.Module]) -> dict[str, nn.Module]:
    """By name, without those within another one, as timm's SplitBatchNorm has them."""
    wanted, found = set(norms), {}
    for name, module in model.named_modules():
        if module in wanted and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    return found
