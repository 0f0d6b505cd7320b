"""Out of the wrappers that a user put around a model, in which weights and arguments have other names."""

import logging
import sys

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

logger = logging.getLogger(__name__)


def without_wrappers(model: nn.Module, compiles: bool = True) -> nn.Module:
    """The model inside of `torch.compile`, DDP and DataParallel, which Trainer puts around it by itself.

    A wrapper of `torch.compile` hides class, forward and `save_pretrained`, and puts `_orig_mod.` into the names of
    weights, which no checkpoint may hold. What was compiled, the model or a part of it, is then compiled in place
    (as `model.compile()` does), with the options it was given.

    Args:
        compiles: False leaves the modules uncompiled.
    """
    wrapper = None
    while (inner := _inside(model)) is not None:
        wrapper = model if _is_compiled(model) else wrapper
        if isinstance(model, DistributedDataParallel):
            logger.warning(
                "Trainer wraps the model in DDP by itself: the options of yours do not hold. Trainer's own are called "
                "ddp_find_unused_parameters, ddp_bucket_cap_mb and ddp_broadcast_buffers."
            )
        model = inner
    if wrapper is not None and compiles:
        _compile_as(wrapper, model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            while _is_compiled(child):
                if compiles:
                    _compile_as(child, child._orig_mod)
                child = child._orig_mod
                setattr(module, name, child)
    return model


def _inside(model: nn.Module) -> nn.Module | None:
    if _is_compiled(model):
        return model._orig_mod
    return model.module if isinstance(model, (DataParallel, DistributedDataParallel)) else None


def _is_compiled(module: nn.Module) -> bool:
    dynamo = sys.modules.get("torch._dynamo")  # takes a second to import, and is there if anything was compiled
    return dynamo is not None and isinstance(module, dynamo.eval_frame.OptimizedModule)


def _compile_as(wrapper: nn.Module, model: nn.Module) -> None:
    """As `model.compile()`, with the options of a wrapper of `torch.compile`."""
    model._compiled_call_impl = wrapper.dynamo_ctx(model._call_impl)
