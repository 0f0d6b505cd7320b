"""Floating-point operations of one image's passes, by torch's own counter, on a model without weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

# BatchNorm in training mode refuses a single value per channel.
IMAGES = 2


@dataclass(frozen=True)
class PassFlops:
    """FLOPs of one image; a multiplication and an addition are two.

    Args:
        forward: a pass without a gradient.
        input_gradient: forward and the gradient of the pixels, weights frozen: an attack step.
        training: forward and the gradients of the weights that are trained.
    """

    forward: int
    input_gradient: int
    training: int


_COUNTED: dict[tuple, PassFlops] = {}  # by structure


def count_flops(model: nn.Module, input_size: tuple[int, int], channels: int = 3) -> PassFlops:
    """Count the three kinds of passes; on `device="meta"` nothing is computed and no memory is used.

    Counted once for all models of one structure, since a grid plans the same ones for each eps, setting and dataset.

    As in the run, attacks see the model in evaluation mode with all parameters frozen, training sees it in training
    mode with those frozen that are frozen.

    Args:
        model: a transformers classifier or segmenter.
        input_size: height and width in pixels.
        channels: of the input.
    """
    parameters = tuple((each.requires_grad, each.device) for each in model.parameters())
    key = (repr(model), str(getattr(model, "config", None)), parameters, tuple(input_size), channels)
    if key not in _COUNTED:
        _COUNTED[key] = _count(model, input_size, channels)
    return _COUNTED[key]


def _count(model: nn.Module, input_size: tuple[int, int], channels: int) -> PassFlops:
    device = next(model.parameters()).device
    pixels = torch.zeros(IMAGES, channels, *input_size, device=device)
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    try:
        model.train()
        training = _counted(lambda: _loss(model, pixels).backward())
        model.eval().requires_grad_(False)
        forward = _counted(lambda: _loss(model, pixels))
        attacked = pixels.clone().requires_grad_()
        input_gradient = _counted(lambda: _loss(model, attacked).backward())
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained[name])
            parameter.grad = None
        for name, module in model.named_modules():
            module.training = modes[name]
    return PassFlops(forward, input_gradient, training)


def _loss(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    return model(pixel_values=pixels).logits.sum()


def _counted(call: Callable[[], object]) -> int:
    mapping = {torch.ops.aten.convolution_backward: _convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        call()
    return counter.get_total_flops() // IMAGES


def _convolution_backward(
    grad_out_shape: Sequence[int],
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    _bias: object,
    _stride: object,
    _padding: object,
    _dilation: object,
    transposed: bool,
    _output_padding: object,
    _groups: int,
    output_mask: Sequence[bool],
    out_shape: object = None,
) -> int:
    """Either gradient of a convolution costs as much as its forward pass.

    torch 2.15's own formula counts the weight gradient of a grouped convolution as if it had one group: 42 times the
    forward pass for a training step of EfficientNet-Lite0, 9 times for ConvNeXt.
    """
    forward = conv_flop_count(x_shape, w_shape, grad_out_shape, transposed=transposed)
    return forward * (bool(output_mask[0]) + bool(output_mask[1]))
