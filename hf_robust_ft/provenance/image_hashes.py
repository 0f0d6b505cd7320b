"""Which images a result is of: a hash of each as it was evaluated, and one of them all."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

BYTES = 8  # of SHA-256: among a million images two share one by chance with 3 in 100 million


def hash_images(pixels: Tensor) -> Tensor:
    """Hashes (N, 8) uint8, on the CPU, of pixels (N, C, H, W) in [0, 1]: of shape and pixels, in whole 255ths.

    Whole 255ths are what resizing gives, so a hash does not depend on the rounding of normalisation, on the device or
    on the batch. The same image resized or cropped to another size, or cast to bfloat16, has another hash.
    """
    levels = (pixels.detach().float().clamp(0, 1) * 255).round().to("cpu", torch.uint8).contiguous()
    shape = "x".join(map(str, levels.shape[1:])).encode()
    digests = [hashlib.sha256(shape + image.numpy().tobytes()).digest()[:BYTES] for image in levels]
    return torch.tensor(list(b"".join(digests)), dtype=torch.uint8).view(-1, BYTES)


def as_hex(hashes: Tensor) -> list[str]:
    """16 hex digits for each row of `hash_images`."""
    return [bytes(row).hex() for row in hashes.tolist()]


def combined_hash(hashes: Iterable[str]) -> str:
    """16 hex digits for a set of images, whatever their order; "" for none.

    >>> combined_hash(["b7", "a1"]) == combined_hash(["a1", "b7"]) != combined_hash(["a1"])
    True
    """
    ordered = sorted(hashes)
    return hashlib.sha256("\n".join(ordered).encode()).hexdigest()[: 2 * BYTES] if ordered else ""
