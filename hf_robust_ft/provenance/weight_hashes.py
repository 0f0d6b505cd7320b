"""Which weights a report was measured on: checksums of a checkpoint's files and of a model in memory."""

import hashlib
from pathlib import Path

import torch
from torch import nn

WEIGHT_FILES = "model*.safetensors"  # one file, or shards


def hash_file(path: str | Path) -> str:
    """sha256 of a file, in hexadecimal digits, as the Hub lists it for large files."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_weight_files(folder: str | Path) -> dict[str, str]:
    """sha256 of a checkpoint's safetensors files by name; empty where there is none."""
    return {path.name: hash_file(path) for path in sorted(Path(folder).glob(WEIGHT_FILES))}


def hash_model(model: nn.Module) -> str:
    """sha256 over the names, types, shapes and values of all parameters and buffers.

    >>> layer = nn.Linear(2, 1)
    >>> before = hash_model(layer)
    >>> hash_model(layer) == before
    True
    >>> _ = nn.init.zeros_(layer.bias)
    >>> hash_model(layer) == before
    False
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy() if flat.numel() else b"")
    return digest.hexdigest()
