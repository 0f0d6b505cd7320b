"""BatchNorm under attack: its statistics and weights stand still, so that its backward pass needs none of its input."""

from types import MethodType

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

KNOWN_DEVICES = ("cpu", "cuda", "meta")  # whose backward kernel looks at no input then


class FrozenBatchNorm(torch.autograd.Function):
    """`torch.batch_norm` by given statistics, to the bit, which keeps no activation for its backward pass.

    autograd keeps the input of every BatchNorm for the gradients of its weights, also where they are frozen: half of
    what the attack on a ResNet-50 needs.
    """

    @staticmethod
    def forward(ctx, x: Tensor, module: _BatchNorm) -> Tensor:
        ctx.module, ctx.strides = module, x.stride()
        return torch.batch_norm(
            x,
            module.weight,
            module.bias,
            module.running_mean,
            module.running_var,
            False,
            0.0,
            module.eps,
            torch.backends.cudnn.enabled,
        )

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        module = ctx.module
        # Only the layout of the stand-in for the input matters: it is the layout of what comes out.
        stand_in = gradient
        if gradient.stride() != ctx.strides:
            stand_in = torch.empty_strided(gradient.shape, ctx.strides, dtype=gradient.dtype, device=gradient.device)
        found = torch.ops.aten.native_batch_norm_backward(
            gradient,
            stand_in,
            module.weight,
            module.running_mean,
            module.running_var,
            None,
            None,
            False,
            module.eps,
            [True, False, False],
        )
        return found[0], None


def can_be_frozen(module: nn.Module) -> bool:
    """Whether a module is a BatchNorm by running statistics, PyTorch's own or timm's with an activation after it."""
    if not isinstance(module, _BatchNorm) or module.running_mean is None or "forward" in vars(module):
        return False
    return _is_plain(module) or _has_activation(module)


def freeze(module: _BatchNorm) -> None:
    """Let such a module keep nothing for the backward pass; `thaw` undoes it."""
    # One function for all modules and times, or compiled models would be compiled again for each.
    module.forward = MethodType(_forward, module)


def thaw(module: _BatchNorm) -> None:
    del module.forward


def _is_plain(module: nn.Module) -> bool:
    return type(module).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward)


def _has_activation(module: nn.Module) -> bool:
    return type(module).__name__ == "BatchNormAct2d" and type(module).__module__ == "timm.layers.norm_act"


def _forward(module: _BatchNorm, x: Tensor) -> Tensor:
    frozen = not any(each is not None and each.requires_grad for each in (module.weight, module.bias))
    usual = module.training or not frozen or not x.requires_grad or x.device.type not in KNOWN_DEVICES
    if usual or torch.compiler.is_compiling():  # whose graphs keep what they need
        return type(module).forward(module, x)
    x = FrozenBatchNorm.apply(x, module)
    return x if _is_plain(module) else module.act(module.drop(x))
