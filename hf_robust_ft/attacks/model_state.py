"""What a model must look like while it is attacked (mode, frozen parameters, memory layout), and how it is put back."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from hf_robust_ft.attacks import frozen_batch_norm


@contextmanager
def attack_mode(model: nn.Module, freeze: bool = True) -> Iterator[None]:
    """Evaluation mode, and parameters that need no gradient, for the length of an attack.

    Evaluation mode keeps BatchNorm statistics and the dropout RNG untouched. Without parameter gradients autograd
    keeps fewer activations (24 % less memory on a tiny ViT; of BatchNorm see `frozen_batch_norm`). Every module's mode
    and every parameter's `requires_grad` come back as they were found, also when the attack raises.

    transformers checkpoints activations in training mode only: layers that do so keep that flag for themselves, not
    for the modules inside of them. Otherwise the attack would need the memory that checkpointing was to save.

    Args:
        model: the module the attack differentiates through.
        freeze: leave it off under FSDP, which keeps copies of parameters whose gradient flag would not come back.
    """
    modes = [(module, module.training) for module in model.modules()]
    # Made under inference mode, a parameter never gets its flag back; no gradient passes it either way.
    frozen = [each for each in model.parameters() if freeze and each.requires_grad and not each.is_inference()]
    norms = [module for module, _ in modes if freeze and frozen_batch_norm.can_be_frozen(module)]
    try:
        model.eval()
        for norm in norms:
            frozen_batch_norm.freeze(norm)
        for module, training in modes:
            if training and getattr(module, "gradient_checkpointing", False):
                module.training = True
        for parameter in frozen:
            parameter.requires_grad_(False)
        yield
    finally:
        for norm in norms:
            frozen_batch_norm.thaw(norm)
        for parameter in frozen:
            parameter.requires_grad_(True)
        for module, training in modes:
            module.training = training


MEMORY_FORMATS = ("keep", "auto", "contiguous", "channels_last")


def use_fast_memory_format(model: nn.Module) -> str:
    """Convert a convolutional model to channels_last, in place, and name the layout in use.

    An attack step on EfficientNet-Lite0 takes about a third of the time in channels_last on CPU. A model counts as
    convolutional when convolution kernels (4-D) larger than 1 x 1 stand in more than one of its layers: a vision
    transformer has one, its patch embedding.
    """
    if len(_wide_kernels(model)) < 2:
        return "contiguous"
    model.to(memory_format=torch.channels_last)
    return "channels_last"


def use_memory_format(model: nn.Module, name: str) -> str:
    """Convert a model in place to one of `MEMORY_FORMATS` ("auto": `use_fast_memory_format`); the layout in use."""
    if name == "auto":
        return use_fast_memory_format(model)
    if name != "keep":
        model.to(memory_format=torch.channels_last if name == "channels_last" else torch.contiguous_format)
    wide = _wide_kernels(model)
    is_last = wide and all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in wide)
    return "channels_last" if is_last else "contiguous"


@contextmanager
def fast_memory_format(model: nn.Module) -> Iterator[str]:
    """`use_fast_memory_format` for a while: each parameter comes back in the layout it was in."""
    strides = [(kernel, kernel.stride()) for kernel in _kernels(model)]
    try:
        yield use_fast_memory_format(model)
    finally:
        for kernel, stride in strides:
            if kernel.stride() != stride:
                kernel.data = torch.empty_strided(kernel.shape, stride, dtype=kernel.dtype, device=kernel.device).copy_(
                    kernel.data
                )


def _kernels(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.ndim == 4]


def _wide_kernels(model: nn.Module) -> list[nn.Parameter]:
    return [kernel for kernel in _kernels(model) if kernel.shape[-1] > 1]
