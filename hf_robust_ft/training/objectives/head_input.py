"""What a classifier's head is given: the features that its logits are made of."""

from typing import Any

import torch
from torch import Tensor, nn

from hf_robust_ft.training.tuning.parts import head_modules


class HeadInput:
    """Notes, at each forward of a model, what its head is given; with two heads (a distilled DeiT), of both.

    Of a CLIP tower whose last projection is folded into the head these are the features before it.

    >>> model = nn.Sequential()
    >>> model.body, model.head = nn.Linear(2, 3), nn.Linear(3, 4)
    >>> seen = HeadInput(model)
    >>> logits = model(torch.ones(5, 2))
    >>> torch.equal(model.head(seen.take()), logits)
    True

    Raises:
        ValueError: the head cannot be told from the rest of the model.
    """

    def __init__(self, model: nn.Module):
        self._given = _Given()
        self._hooks = [
            model.get_submodule(name).register_forward_pre_hook(_Note(self._given, name), with_kwargs=True)
            for name in head_modules(model)
        ]

    def take(self) -> Tensor:
        """(N, D) in float32 of the last forward, and with its gradient; once."""
        features = torch.cat([each.flatten(1).float() for each in self._given.values()], 1)
        self._given.clear()
        return features

    def forget(self) -> None:
        """Note nothing any more."""
        for hook in self._hooks:
            hook.remove()
        self._given.clear()


class _Given(dict):
    """By head; a copy of the model begins with none, for a tensor with a graph cannot be copied."""

    def __deepcopy__(self, memo: dict) -> "_Given":
        return _Given()


class _Note:
    """A head's hook."""

    def __init__(self, given: _Given, name: str):
        self._given, self._name = given, name

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self._given[self._name] = args[0] if args else next(iter(kwargs.values()))
