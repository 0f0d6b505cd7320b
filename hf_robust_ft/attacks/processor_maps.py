"""What an image processor does to colours, found by trying it: settings do not tell of a second scaling or of BGR."""

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

Statistics = tuple[tuple[float, ...], tuple[float, ...]]

_SIDE = 256
_FITTED = ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255))
_VERIFIED = ((255, 255, 255), (37, 101, 202), (210, 90, 14))
_EXACT = 1e-5  # relative to the largest value: float32 rounding of a few operations
_NEAR = 2 / 255  # of two colours side by side, whose resizing rounds to bytes
_KEPT = 0.4  # share of an output that is not where the two meet, and no border

HOW_ELSE = (
    "In a script make pixel_values by a transform that is such a map, e.g. torchvision's Normalize(mean, std), and "
    "pass pixel_space=PixelSpace(mean, std). On the command line give a folder with the checkpoint and a processor "
    "that is one: ViTImageProcessor(image_mean=..., image_std=...).save_pretrained(folder)."
)


@dataclass(frozen=True)
class ProcessorMap:
    """`pixel_values[c] = (pixels[channels[c]] - mean[c]) / std[c]` for RGB pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: tuple[int, ...]


def map_of(processor: Any) -> ProcessorMap:
    """The map of an image processor, fitted to plain black, red, green and blue and verified on other images.

    Where the processor states `image_mean` and `image_std`, or timm's `data_config`, and the fit agrees, these are
    taken: they are exact.

    Args:
        processor: called as transformers' image processors are, `processor(image, return_tensors="pt")`.

    Raises:
        ValueError: it makes no images (N, 3, H, W), or is no map of each channel by itself; with the cure.
    """
    name = type(processor).__name__
    if not callable(processor):
        raise ValueError(_unknown(name, "is no image processor"))
    colours = torch.tensor(_FITTED + _VERIFIED, dtype=torch.float64) / 255
    outputs = torch.cat([_processed(processor, Image.new("RGB", (_SIDE, _SIDE), c)) for c in _FITTED + _VERIFIED])
    values = _plain_values(outputs, name)
    found = _fitted(values[: len(_FITTED)], name)
    found = _as_stated(found, processor)
    expected = _applied(found, colours)
    error = ((values - expected).abs().max() / expected.abs().max().clamp(min=1)).item()
    if error > _EXACT:
        raise ValueError(_no_map(name, f"off by {error:.2g} on plain colours from the map fitted to others, {found}"))
    _verify_on_two_colours(processor, found, name)
    return found


def _unknown(name: str, found: str) -> str:
    return (
        f"{name} {found}, so its normalisation is unknown. Pass the checkpoint's image processor "
        f"(AutoImageProcessor.from_pretrained(...)). {HOW_ELSE}"
    )


def _no_map(name: str, found: str) -> str:
    return (
        f"{name} is no map (pixel - mean) / std of each colour channel by itself, which an attack on pixels must undo: "
        f"it is {found}. {HOW_ELSE}"
    )


def _processed(processor: Any, image: Image.Image) -> Tensor:
    """`pixel_values` (1, 3, H, W) of one image."""
    name = type(processor).__name__
    try:
        made = processor(image, return_tensors="pt")
    except Exception as error:  # whatever a processor may raise where it wants more than an image
        reason = (str(error).splitlines() or [""])[0]
        found = f"cannot process an image by itself ({type(error).__name__}: {reason})"
        raise ValueError(_unknown(name, found)) from error
    if not hasattr(made, "keys") or "pixel_values" not in made:
        raise ValueError(_unknown(name, "makes no 'pixel_values' of an image"))
    values = torch.as_tensor(made["pixel_values"])
    if values.ndim != 4 or values.shape[:2] != (1, 3):
        raise ValueError(
            f"{name} makes pixel_values of shape {tuple(values.shape)} of one image, not (1, 3, H, W): an attack "
            f"changes the pixels of images. {HOW_ELSE}"
        )
    return values.double()


def _plain_values(outputs: Tensor, name: str) -> Tensor:
    """The one colour (K, C) of each output (K, C, H, W) for a plain image; a border that never changes is allowed."""
    values = outputs[:, :, outputs.shape[2] // 2, outputs.shape[3] // 2]
    scale = values.abs().max().clamp(min=1)
    plain = ((outputs - values[:, :, None, None]).abs() <= _EXACT * scale).all(0)
    border = ((outputs - outputs[:1]).abs() <= _EXACT * scale).all(0)
    if not (plain | border).all():
        raise ValueError(_no_map(name, "not one colour any more where the image was"))
    return values


def _fitted(values: Tensor, name: str) -> ProcessorMap:
    """From the outputs (4, C) for black, red, green and blue."""
    black = values[0]
    slopes = (values[1:] - black).T  # (C, 3): what each colour does to each channel of the output
    strongest = slopes.abs().argmax(1)
    own = slopes.gather(1, strongest[:, None])[:, 0]
    others = slopes.scatter(1, strongest[:, None], 0.0).abs().amax(1)
    if (others > _EXACT * own.abs()).any() or sorted(strongest.tolist()) != list(range(len(values[0]))):
        raise ValueError(_no_map(name, f"a mixture of channels: red, green and blue give {_rounded(slopes.T)}"))
    if (own <= 0).any():
        raise ValueError(_no_map(name, f"not rising with the pixel: from black to full colour by {_rounded(own)}"))
    mean, std = (tuple(round(value, 7) for value in part.tolist()) for part in (-black / own, 1 / own))
    return ProcessorMap(tuple(value + 0.0 for value in mean), std, tuple(strongest.tolist()))  # + 0.0: no -0.0


def _rounded(values: Tensor) -> list:
    return [_rounded(row) for row in values] if values.ndim > 1 else [float(f"{value:.4g}") for value in values]


def _as_stated(found: ProcessorMap, processor: Any) -> ProcessorMap:
    """With the processor's own digits where they agree with what was found."""
    for mean, std in _stated(processor):
        close = all(
            abs(ours - theirs) <= _EXACT for ours, theirs in zip(found.mean + found.std, (*mean, *std), strict=False)
        )
        if close and len(mean) == len(std) == len(found.mean):
            return ProcessorMap(mean, std, found.channels)
    return found


def _stated(processor: Any) -> list[Statistics]:
    """Mean and std as the settings have them, in units of [0, 1], as they are and with the channels reversed."""
    if hasattr(processor, "data_config"):
        mean, std, white = processor.data_config["mean"], processor.data_config["std"], 1.0
    else:
        mean, std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
        if not getattr(processor, "do_normalize", False):
            mean, std = (0.0,) * 3, (1.0,) * 3
        # Most processors map byte 255 to 1; those that do not shift the scale of mean and std.
        rescales = getattr(processor, "do_rescale", False)
        white = 255 * (getattr(processor, "rescale_factor", None) or 1 / 255) if rescales else 255.0
        white = 1.0 if abs(white - 1) < 1e-6 else white
    if not isinstance(mean, (list, tuple)) or not isinstance(std, (list, tuple)):
        return []
    mean, std = (tuple(value / white for value in part) for part in (mean, std))
    return [(mean, std), (mean[::-1], std[::-1])]


def _applied(found: ProcessorMap, colours: Tensor) -> Tensor:
    """The map on colours (..., 3)."""
    mean, std = (torch.tensor(part, dtype=torch.float64) for part in (found.mean, found.std))
    return (colours[..., list(found.channels)] - mean) / std


def _verify_on_two_colours(processor: Any, found: ProcessorMap, name: str) -> None:
    """Raise where an image of two colours is not mapped as each alone: what looks at the whole image is no map."""
    image = Image.new("RGB", (_SIDE, _SIDE), _VERIFIED[1])
    image.paste(_VERIFIED[2], (_SIDE // 2, 0, _SIDE, _SIDE))
    output = _processed(processor, image)[0].flatten(1).T  # (H W, 3)
    expected = _applied(found, torch.tensor(_VERIFIED[1:], dtype=torch.float64) / 255)
    off = (output[:, None] - expected).abs() * torch.tensor(found.std, dtype=torch.float64)  # (H W, 2, 3), in pixels
    kept = (off.amax(2).amin(1) <= _NEAR).double().mean().item()
    if kept < _KEPT:
        raise ValueError(_no_map(name, f"another one for an image of two colours, {1 - kept:.0%} of which are neither"))
