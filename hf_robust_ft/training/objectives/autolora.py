"""AutoLoRA (Xu et al., ICLR 2024): the natural loss trains a low-rank branch that is thrown away, `at` the network.

    total = l1 * CE(natural(x)) + (1 - l1) * L(xa) + l2 * mean KL(p_natural(x) ‖ p(xa)),   l1 = 1 - a,  l2 = scale * a

natural(x) is the network with low-rank updates on its weights, of which the network itself learns nothing: its weights
are detached there, but for the head's. a in [0, 1] is that branch's accuracy on the training images. What is attacked,
evaluated and saved is the network without the updates, which are not merged: that would be another network.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from hf_robust_ft.attacks.losses import kl_divergence
from hf_robust_ft.training.objectives.hidden import hide
from hf_robust_ft.training.objectives.passes import Loss, Objective, Passes, logits_of
from hf_robust_ft.training.tuning.parts import head_parameters, layer_numbers

BRANCH = "natural_branch"  # name of the updates in the model


class NaturalBranch(nn.Module):
    """Low-rank updates of a network's layers between stem and head: linear ones, and convolutions of one group.

    The update of a weight (out, in, h, w) is B A / rank in its shape, of A (rank w, in w) and B (out h, rank w); for a
    linear layer h and w are 1. A is drawn from N(0, 1), B is 0: the branch begins as the network.

    Args:
        model: the network.
        rank: of the updates.
        seed: of A; the global random state is left alone.

    Raises:
        ValueError: which layers are stem and head cannot be told, or there is nothing between them.
    """

    def __init__(self, model: nn.Module, rank: int, seed: int = 0):
        super().__init__()
        self.rank = rank
        self.adapted = {name: name.replace(".", "-") for name in _adapted_weights(model)}  # a key may hold no dot
        self.a, self.b = nn.ParameterDict(), nn.ParameterDict()
        named = dict(model.named_parameters())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for name, key in self.adapted.items():
                weight = named[name]
                out, into, height, width = (*weight.shape, 1, 1)[:4]
                inner = torch.randn(rank * width, into * width).to(weight)
                self.a[key] = nn.Parameter(inner)
                self.b[key] = nn.Parameter(weight.new_zeros(out * height, rank * width))

    def updated(self, name: str, weight: Tensor) -> Tensor:
        """A weight of the network, detached, and with its update if it has one."""
        key = self.adapted.get(name)
        if key is None:
            return weight.detach()
        return weight.detach() + (self.b[key] @ self.a[key]).view(weight.shape) / self.rank


class NaturalNetwork(nn.Module):
    """A model with its branch, as a module of the model's own inputs; buffers are the model's, and so is the mode."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.training = model.training
        head = head_parameters(model)
        self.names = [name for name, _ in model.named_parameters() if name not in head and not _is_branch(name)]

    def forward(self, *args: Any, **inputs: Any) -> Any:
        named, branch = dict(self.model.named_parameters()), getattr(self.model, BRANCH)
        weights = {name: branch.updated(name, named[name]) for name in self.names}
        return functional_call(self.model, weights, args, inputs)


def add_branch(model: nn.Module, rank: int, seed: int) -> nn.Module:
    """Give a model its branch, in place; `state_dict()` and logits stay what they are. Raises as `NaturalBranch`."""
    model.add_module(BRANCH, NaturalBranch(model, rank, seed))
    hide(model, BRANCH)
    return model


def autolora(objective: Objective, accuracy: float, scale: float, model: nn.Module) -> Objective:
    """The objective of network and branch, which share each step.

    Without an attack the network's loss is that of the images themselves. Label smoothing is for the network's alone.

    Args:
        objective: the network's, `at`.
        accuracy: of the branch on the training images, a.
        scale: of the weight of the KL term, l2 = scale * a.
        model: the unwrapped model, with its branch.
    """
    lambda1, lambda2 = 1 - accuracy, scale * accuracy

    def both(passes: Passes, clean: Tensor, adversarial: Tensor | None) -> Loss:
        robust = objective(passes, clean, adversarial)
        natural = passes.through(NaturalNetwork(model))(clean)
        cross_entropy = passes.mean(F.cross_entropy(natural.logits, passes.labels, reduction="none"))
        kl = passes.mean(kl_divergence(logits_of(robust.outputs), natural.logits.log_softmax(1)))
        # No term is left out where its weight is 0: under DDP every parameter needs its gradient in every step.
        total = lambda1 * cross_entropy + (1 - lambda1) * robust.total + lambda2 * kl
        parts = {"loss_natural": cross_entropy, "loss_adversarial": robust.total, "loss_kl": kl}
        weights = {"lambda1": kl.new_full((), lambda1), "lambda2": kl.new_full((), lambda2)}
        return Loss(total, robust.outputs, parts | weights)

    return both


def _is_branch(name: str) -> bool:
    return name.startswith(f"{BRANCH}.")


def _adapted_weights(model: nn.Module) -> list[str]:
    try:
        depths = layer_numbers(model)
    except ValueError as error:
        raise ValueError(
            f"autolora adapts the layers between stem and head, and those of {type(model).__name__} cannot be told: it "
            "is neither a timm model with a group_matcher nor a transformers model with numbered layers, stages or "
            "blocks and a head. Leave autolora out, and use objective=trades."
        ) from error
    top, found = max(depths.values()), []
    for name, module in model.named_modules():
        is_dense = isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
        if is_dense and 0 < depths.get(f"{name}.weight", 0) < top:
            found.append(f"{name}.weight")
    if not found:
        raise ValueError(
            f"autolora finds no linear layer, nor convolution of one group, between stem and head of "
            f"{type(model).__name__}: leave it out and use objective=trades."
        )
    return found
