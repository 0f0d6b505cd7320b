"""Modules that train with a model and are no part of it: its `state_dict` stays the plain model's.

So whatever saves, loads, hashes or publishes the model by its `state_dict` needs to know nothing of them. A checkpoint
keeps them in a file of their own, which is never published.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FILE_NAME = "hidden_weights.safetensors"
CHILDREN = "hidden_children"  # attribute of a module: the names of those of its children that are hidden


def hide(parent: nn.Module, name: str) -> None:
    """Keep a module's child out of `state_dict()`, and let `load_state_dict` not miss it; it trains as it did.

    >>> model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    >>> hide(model, "1")
    >>> list(model.state_dict())
    ['0.weight', '0.bias']
    >>> model.load_state_dict(model.state_dict(), strict=True)
    <All keys matched successfully>
    """
    setattr(parent, CHILDREN, (*getattr(parent, CHILDREN, ()), name))

    def drop(module: nn.Module, state_dict: dict, prefix: str, local_metadata: dict) -> None:
        for table in (state_dict, getattr(state_dict, "_metadata", {})):
            for key in [key for key in table if f"{key}.".startswith(f"{prefix}{name}.")]:
                del table[key]

    def fill_in(module: nn.Module, state_dict: dict, prefix: str, *args: object) -> None:
        if name in module._modules:  # else it was removed
            state_dict.update(module.get_submodule(name).state_dict(prefix=f"{prefix}{name}."))

    parent.register_state_dict_post_hook(drop)
    parent.register_load_state_dict_pre_hook(fill_in)


def own_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """`named_modules()` without what is hidden."""
    hidden = [f"{name}.{child}." for name, each in model.named_modules() for child in getattr(each, CHILDREN, ())]
    hidden = tuple(prefix.removeprefix(".") for prefix in hidden)
    return ((name, each) for name, each in model.named_modules() if not f"{name}.".startswith(hidden))


def remove_hidden(model: nn.Module) -> None:
    """Take all hidden modules out of a model, which an earlier training left in it."""
    for module in list(model.modules()):
        for name in getattr(module, CHILDREN, ()):
            delattr(module, name)
        if hasattr(module, CHILDREN):
            delattr(module, CHILDREN)


def hidden_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of all hidden modules, by their full names; the tensors themselves, not copies."""
    return {
        name: tensor.detach()
        for parent, module in model.named_modules()
        for child in getattr(module, CHILDREN, ())
        for name, tensor in module.get_submodule(child).state_dict(prefix=f"{parent}.{child}.".lstrip(".")).items()
    }


def save_hidden(model: nn.Module, folder: str | Path) -> None:
    """Write what is hidden into a checkpoint's folder; nothing without any."""
    if tensors := hidden_tensors(model):
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, Path(folder) / FILE_NAME)


@torch.no_grad()
def load_hidden(folder: str | Path, model: nn.Module) -> None:
    """Read what is hidden from a checkpoint's folder into a model that has the same modules; nothing without any.

    Raises:
        ValueError: the checkpoint holds none.
        RuntimeError: it holds others.
    """
    tensors, path = hidden_tensors(model), Path(folder) / FILE_NAME
    if not tensors:
        return
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no {FILE_NAME}: it was trained without twins_lambda, autolora or a teacher (objectives "
            "pmg_aft and fare). Resume it without them, or start anew."
        )
    saved = load_file(path)
    wrong = [name for name in tensors.keys() | saved.keys() if _shape(saved, name) != _shape(tensors, name)]
    if wrong:
        raise RuntimeError(f"{path} does not hold this model's hidden weights: {sorted(wrong)[:5]}.")
    for name, tensor in tensors.items():
        tensor.copy_(saved[name])


def _shape(tensors: dict[str, Tensor], name: str) -> torch.Size | None:
    return tensors[name].shape if name in tensors else None
