"""BatchNorm under attack: its statistics and weights stand still, so that its backward pass needs none of its input."""

from functools import cache

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
        no_batch_statistics = module.running_mean.new_empty(0)  # as autograd gives them in evaluation mode
        found = torch.ops.aten.native_batch_norm_backward(
            gradient,
            stand_in,
            module.weight,
            module.running_mean,
            module.running_var,
            no_batch_statistics,
            no_batch_statistics,
            False,
            module.eps,
            [True, False, False],
        )
        return found[0], None


def can_be_frozen(module: nn.Module) -> bool:
    """Whether a module is a BatchNorm by running statistics, PyTorch's own or timm's with an activation after it."""
    if not isinstance(module, _BatchNorm) or module.running_mean is None or "forward" in vars(module):
        return False
    return _is_plain(type(module)) or _has_activation(type(module))


def freeze(module: _BatchNorm) -> None:
    """Let such a module keep nothing for the backward pass; `thaw` undoes it.

    By its class, not by a method of its own, which DataParallel's replicas would call on the first device's weights.
    """
    module.__class__ = _frozen(type(module))


def thaw(module: _BatchNorm) -> None:
    module.__class__ = type(module).__base__


@cache
def _frozen(usual: type[_BatchNorm]) -> type[_BatchNorm]:
    """One class for all modules and times, or compiled models would be compiled again for each."""
    is_plain = _is_plain(usual)

    def forward(module: _BatchNorm, x: Tensor) -> Tensor:
        moves = module.training or any(each is not None and each.requires_grad for each in (module.weight, module.bias))
        usually = moves or not x.requires_grad or x.device.type not in KNOWN_DEVICES
        if usually or torch.compiler.is_compiling():  # whose graphs keep only what they need
            return usual.forward(module, x)
        x = FrozenBatchNorm.apply(x, module)
        return x if is_plain else module.act(module.drop(x))

    return type(f"Frozen{usual.__name__}", (usual,), {"forward": forward})


def _is_plain(kind: type) -> bool:
    return kind.forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward)


def _has_activation(kind: type) -> bool:
    return kind.__name__ == "BatchNormAct2d" and kind.__module__ == "timm.layers.norm_act"
