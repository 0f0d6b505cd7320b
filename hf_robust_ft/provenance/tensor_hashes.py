"""Checksums of tensors and models in memory: is this what it was before?"""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def hash_tensors(named: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names, dtypes, shapes and values, in hexadecimal digits.

    The device, the memory format and whether gradients are wanted make no difference. Copies the tensors to the CPU.

    Raises:
        ValueError: one without data (`device="meta"`), or what is no tensor.

    >>> hash_tensors([("bias", torch.zeros(2))]) == hash_tensors([("bias", torch.zeros(1))])
    False
    """
    digest = hashlib.sha256()
    for name, tensor in named:
        if not isinstance(tensor, Tensor) or tensor.is_meta:
            raise ValueError(f"Only a tensor with data has a checksum; {name!r} is {repr(tensor)[:200]}.")
        digest.update(f"{name!r} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        digest.update(plain.reshape(-1).view(torch.uint8).numpy())  # as bytes: numpy has no bfloat16
    return digest.hexdigest()


def hash_model(model: nn.Module) -> str:
    """SHA-256 of a model's `state_dict`, as `hash_tensors`.

    A wrapper (DDP, `torch.compile`) changes the names, so give the bare model. What is no part of the `state_dict` does
    not count (configuration, code, buffers that are not persistent). Costs one copy to the CPU and one pass over the
    weights, about a second a GB.

    Raises:
        ValueError: an entry that is no tensor (`get_extra_state`), or one without data (`device="meta"`).
    """
    return hash_tensors(sorted(model.state_dict().items()))
