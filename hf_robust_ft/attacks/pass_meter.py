"""How many forwards and gradients an attack took, by the number of images in each."""

from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn


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
