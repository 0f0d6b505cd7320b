"""How many of the input gradients that steer an attack are lost, as happens in half precision."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class LostGradients(NamedTuple):
    """Shares in [0, 1] of the gradients that attacks asked for, after their loss scale.

    Attributes:
        unusable: of (image, step) pairs, those whose gradient is all zero or holds NaN or infinity.
        zero: of the gradients' entries, those that are zero.
        nonfinite: of the entries, those that are NaN or infinite.
    """

    unusable: float
    zero: float
    nonfinite: float


class GradientMeter:
    """Counts what attacks on a model lose, on its device: `meter(logits_fn)` is the function to attack.

    The counts are read at `read` and not before, so no attack step waits for the device. Attacks that are compiled as
    one graph are not measured.
    """

    def __init__(self):
        self.images = self.entries = 0  # gradients seen, and their entries
        self._lost: Tensor | None = None

    def __call__(self, logits_fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def metered(pixels: Tensor) -> Tensor:
            if pixels.requires_grad and not torch.compiler.is_compiling():
                pixels.register_hook(self._count)
            return logits_fn(pixels)

        return metered

    def _count(self, gradient: Tensor) -> None:
        entries = gradient.detach().flatten(1)
        size = entries.abs().sum(1)
        usable = size.isfinite() & (size > 0)
        lost = torch.stack([(~usable).sum(), (entries == 0).sum(), (~entries.isfinite()).sum()])
        self._lost = lost if self._lost is None else self._lost + lost
        self.images, self.entries = self.images + len(entries), self.entries + entries.numel()

    def read(self) -> LostGradients | None:
        """What was lost so far; None if no attack ran. note: a host sync"""
        if self._lost is None:
            return None
        unusable, zero, nonfinite = self._lost.tolist()
        return LostGradients(unusable / self.images, zero / self.entries, nonfinite / self.entries)
