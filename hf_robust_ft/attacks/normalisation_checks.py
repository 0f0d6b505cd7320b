"""Was a batch normalised by the map that is stated? `Normalize` forgotten passes for images of little contrast.

Two things tell. Images come from bytes, so that undoing the right map gives multiples of 1/255. And plain pixels fill
their own range, which the stated map takes for a narrow band that no batch of different images keeps to.
"""

import logging

import torch
from torch import Tensor

from hf_robust_ft.attacks.pixels import PixelSpace

logger = logging.getLogger(__name__)

_KNOWN = {
    "pixels in [0, 1] that were not normalised (Normalize, or the processor's do_normalize, is missing)": (0.0, 1.0),
    "pixels normalised to [-1, 1], by mean and std 0.5": (0.5, 0.5),
    "pixels normalised by ImageNet's mean and std": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "pixels normalised by CLIP's mean and std": (
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
    ),
    "pixels normalised by CIFAR's mean and std": ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
    "pixels normalised by CIFAR's mean and the mean of its images' std": (
        (0.4914, 0.4822, 0.4465),
        (0.2023, 0.1994, 0.201),
    ),
    "pixels normalised by MNIST's mean and std": (0.1307, 0.3081),
}
_SAMPLED = 50_000  # values that are looked at for multiples of 1/255
_ARE_BYTES = 0.9  # share of them that must be; noise or erasing after Normalize spoils some
_LEVELS = 8  # different ones: a plain colour says nothing
_BAND = 0.6  # widest band, as a share of [0, 1], that counts as narrow
_FILLED, _SPREAD = 0.8, 0.25  # shares of the band that a batch fills, to be refused and to be warned of
_DIFFERENT = 0.02  # between two maps' means, and relatively between their stds


def check_normalisation(pixel_values: Tensor, pixel_space: PixelSpace) -> None:
    """Raise where `pixel_values`, which undone by `pixel_space` lie in [0, 1], are normalised by another map.

    Warns where it only looks so: of a single image, or of a batch that fills little of the band.

    Args:
        pixel_values: (N, C, H, W), a batch of different images; read on the host.
        pixel_space: the map that is stated.

    Raises:
        ValueError: they are 8-bit pixels by a well-known other map and not by this one; or they fill exactly what the
            stated map makes of [0, 1] or [-1, 1].
    """
    values = pixel_values.detach().float()
    sample = _sampled(values)
    levels_off = max(0.01, 2 * 255 * pixel_space.rounding(pixel_values.dtype))
    tells_bytes = levels_off < 0.2  # not in bfloat16
    if tells_bytes and _bytes(sample, pixel_space, levels_off)[0] >= _ARE_BYTES:
        return
    others = _others(pixel_space)
    for name, other in others if tells_bytes else []:
        share, levels = _bytes(sample, other, levels_off)
        if share >= _ARE_BYTES and levels >= _LEVELS:
            raise ValueError(_told(name, other, values, pixel_space))
    for name, other in others:
        filled = _share_of_band(values, pixel_space, other)
        if filled >= _FILLED and len(values) > 1:
            hint = " (Images of truly so little contrast are told apart if they come from 8-bit files.)"
            raise ValueError(_told(name, other, values, pixel_space) + hint)
        if filled >= _SPREAD:
            told = _told(name, other, values, pixel_space)
            logger.warning("%s If the images are of so little contrast, all is well.", told)
            return


def _others(pixel_space: PixelSpace) -> list[tuple[str, PixelSpace]]:
    """The well-known maps that differ from this one."""
    count = len(pixel_space.mean)
    spaces = []
    for name, (mean, std) in _KNOWN.items():
        if isinstance(mean, float):
            mean, std = (mean,) * count, (std,) * count
        if len(mean) != count:
            continue
        pairs = zip(pixel_space.mean, mean, strict=True), zip(pixel_space.std, std, strict=True)
        if any(abs(a - b) > _DIFFERENT for a, b in pairs[0]) or any(abs(a / b - 1) > _DIFFERENT for a, b in pairs[1]):
            spaces.append((name, PixelSpace(mean, std)))
    return spaces


def _sampled(values: Tensor) -> Tensor:
    """Values of all images and channels, (M, C, 1, 1), on the CPU."""
    rows = values.movedim(1, -1).reshape(-1, values.shape[1])
    return rows[:: max(1, len(rows) * values.shape[1] // _SAMPLED)].cpu()[:, :, None, None]


def _bytes(values: Tensor, space: PixelSpace, off: float) -> tuple[float, int]:
    """Share of `values` that `space` undoes to multiples of 1/255 in [0, 1], up to `off`/255, and how many levels."""
    levels = 255 * space.to_pixels(values)
    nearest = levels.round()
    are = ((levels - nearest).abs() <= off) & (nearest >= 0) & (nearest <= 255)
    return are.float().mean().item(), len(nearest[are].unique())


def _share_of_band(values: Tensor, stated: PixelSpace, other: PixelSpace) -> float:
    """How much of [0, 1] by the other map every channel fills; 0 where one leaves it, or the band is not narrow."""
    if any(own / theirs > _BAND for own, theirs in zip(stated.std, other.std, strict=True)):
        return 0.0
    low, high = (torch.stack(each).cpu() for each in zip(*(c.aminmax() for c in values.unbind(1)), strict=True))
    low, high = (other.to_pixels(each[:, None, None]).flatten() for each in (low, high))
    if low.min() < -1e-3 or high.max() > 1 + 1e-3:
        return 0.0
    return (high - low).min().item()


def _told(name: str, seen: PixelSpace, values: Tensor, space: PixelSpace) -> str:
    pixels = space.to_pixels(values)
    changed = max(8 * by / std for by, std in zip(seen.std, space.std, strict=True))
    return (
        f"pixel_values, from {values.min():.4g} to {values.max():.4g}, look like {name}, while the stated map is "
        f"(pixel - mean) / std with mean={space.mean} and std={space.std}: undone by it they keep to "
        f"{pixels.min():.4g} to {pixels.max():.4g} of [0, 1], and an eps of 8/255 would change the images by up to "
        f"{changed:.3g}/255. Put Normalize with the stated mean and std, or the checkpoint's "
        "image processor, into the transform; or state the map in use, which for a model that normalises by itself is "
        "pixel_space=PixelSpace()."
    )
