"""How many forwards and gradients an attack took, by the number of images in each."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

FORWARDS_PER_GRADIENT = 3


class CountedForwards:
    """A classifier (any callable from pixels to logits) that counts its forwards an image, a gradient as three."""

    def __init__(self, logits_fn: Callable[[Tensor], Tensor]):
        self.logits_fn, self.count = logits_fn, 0

    def __call__(self, pixels: Tensor) -> Tensor:
        self.count += len(pixels) * (FORWARDS_PER_GRADIENT if pixels.requires_grad else 1)
        return self.logits_fn(pixels)


class PassMeter(AbstractContextManager):
    """Counts what goes through a module from pixels (N, C, H, W) while it is entered, without waiting for a device.

    Attributes:
        forwards: images that went through it; one image in ten forwards counts ten times.
        gradients: images whose gradient was asked for.
    """

    def __init__(self, module: nn.Module):
        self.module = module
        self.forwards = self.gradients = 0

    def __enter__(self) -> "PassMeter":
        self._hook = self.module.register_forward_pre_hook(self._count)
        return self

    def __exit__(self, *_) -> None:
        self._hook.remove()

    def _count(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        pixels = inputs[0]
        self.forwards += len(pixels)
        if pixels.requires_grad:
            pixels.register_hook(self._count_gradient)

    def _count_gradient(self, gradient: Tensor) -> None:
        self.gradients += len(gradient)
