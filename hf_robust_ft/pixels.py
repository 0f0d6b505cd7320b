"""Between what an image processor makes (`pixel_values`) and what an attacker changes (pixels in [0, 1])."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from hf_robust_ft.model_calls import extract_logits, takes_pixel_values

_PROBE_COLOURS = ((0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), (37, 101, 202))


@lru_cache
def _channel_constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # cached: an inference tensor would break every later attack
        return torch.tensor(values, device=device, dtype=dtype).view(-1, 1, 1)


@dataclass(frozen=True)
class PixelSpace:
    """The per-channel affine map of an image processor: `pixel_values = (pixels - mean) / std`.

    Args:
        mean: one value per channel, in pixel units of [0, 1].
        std: one positive value per channel, in pixel units of [0, 1].

    Raises:
        ValueError: different lengths, or a std that is not positive.
    """

    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def __post_init__(self):
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        finite = all(math.isfinite(value) for value in (*self.mean, *self.std))
        if len(self.mean) != len(self.std) or not finite or not all(value > 0 for value in self.std):
            raise ValueError(
                f"PixelSpace needs one mean and one positive std per channel, got mean={self.mean}, std={self.std}."
            )

    def to_pixels(self, pixel_values: Tensor) -> Tensor:
        """Undo the normalisation: (N, C, H, W) model inputs to float32 pixels in [0, 1], up to rounding."""
        pixel_values = pixel_values.float()
        mean, std = self._constants(pixel_values)
        return pixel_values * std + mean

    def from_pixels(self, pixels: Tensor) -> Tensor:
        """Normalise (N, C, H, W) pixels in [0, 1] as the processor does."""
        mean, std = self._constants(pixels)
        return (pixels - mean) / std

    def _constants(self, like: Tensor) -> tuple[Tensor, Tensor]:
        # Cached on the device: making them at each call would copy from the host at every attack step.
        return tuple(_channel_constant(values, like.device, like.dtype) for values in (self.mean, self.std))

    def tolerance(self, dtype: torch.dtype) -> float:
        """How far outside [0, 1] the rounding of `pixel_values` in `dtype` may put pixels: 1e-3, and more in bf16."""
        farthest = max(max(mean, 1 - mean) for mean in self.mean)  # rounding grows with |pixel - mean|
        return max(1e-3, torch.finfo(dtype).eps * farthest)

    def rounding(self, dtype: torch.dtype) -> float:
        """How far casting `pixel_values` to `dtype` may move a pixel, in pixel units of [0, 1]; 0.5/255 in bfloat16."""
        return torch.finfo(dtype).eps / 2 * max(max(mean, 1 - mean) for mean in self.mean)

    @classmethod
    def from_processor(cls, processor: Any) -> "PixelSpace":
        """Read the map off an image processor and verify it on constant-colour images.

        Understands transformers image processors (`image_mean`, `image_std`, `do_normalize`, `do_rescale`,
        `rescale_factor`), transformers' timm wrapper (`data_config`) and processors that hold one as
        `image_processor`.

        Raises:
            ValueError: no normalisation found, or the processor does something that is no per-channel affine map.
        """
        processor = getattr(processor, "image_processor", processor)
        space = cls(*_read_mean_and_std(processor))
        error = _largest_probe_error(processor, space)
        if error is None or error > 1e-5:
            found = "its output has no constant channels" if error is None else f"it is off by {error:.2g}"
            raise ValueError(
                f"{type(processor).__name__} is not the per-channel map (pixel - mean) / std with "
                f"mean={space.mean} and std={space.std}: on constant-colour images {found}. "
                "Pass the map your transform really applies: pixel_space=PixelSpace(mean=(...), std=(...))."
            )
        return space


def _read_mean_and_std(processor: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if hasattr(processor, "data_config"):
        return tuple(processor.data_config["mean"]), tuple(processor.data_config["std"])
    if not hasattr(processor, "image_mean") and not hasattr(processor, "do_rescale"):
        raise ValueError(
            f"{type(processor).__name__} has neither image_mean/image_std nor a timm data_config, so its "
            "normalisation is unknown. Pass an image processor (AutoImageProcessor.from_pretrained(...)), or state "
            "the map yourself: pixel_space=PixelSpace(mean=(...), std=(...))."
        )
    normalizes = getattr(processor, "do_normalize", True)
    mean = processor.image_mean if normalizes else (0.0, 0.0, 0.0)
    std = processor.image_std if normalizes else (1.0, 1.0, 1.0)
    # Most processors map byte 255 to 1; those that do not shift the scale of mean and std.
    white = 255 * processor.rescale_factor if getattr(processor, "do_rescale", True) else 255.0
    if abs(white - 1) < 1e-6:
        white = 1.0
    return tuple(value / white for value in mean), tuple(value / white for value in std)


def _largest_probe_error(processor: Any, space: PixelSpace) -> float | None:
    """How far the processor is from `space` on plain-colour images; None if its output is not one colour."""
    from PIL import Image

    images = [Image.new("RGB", (256, 256), colour) for colour in _PROBE_COLOURS]
    outputs = torch.cat([torch.as_tensor(processor(image, return_tensors="pt")["pixel_values"]) for image in images])
    if outputs.ndim != 4 or outputs.shape[1] != 3:
        return None
    flat = outputs.float().flatten(2)
    if (flat.amax(2) - flat.amin(2)).max() > 1e-5:
        return None
    colours = torch.tensor(_PROBE_COLOURS).float() / 255
    expected = space.from_pixels(colours[:, :, None, None]).flatten(1)
    return ((flat[:, :, 0] - expected).abs().max() / expected.abs().max().clamp(min=1)).item()


class PixelClassifier(nn.Module):
    """A classifier on pixels in [0, 1] that returns a plain logits tensor: the shape attack libraries expect.

    Args:
        model: a transformers, PEFT, timm or plain module from normalised images to logits, which stand in its output
            as `model_calls.extract_logits` says. It is given them as `pixel_values=` where its forward has such a
            parameter, else as the first argument.
        pixel_space: the normalisation the model expects.
        model_inputs: further keyword arguments for every call of the model.

    Shape:
        pixels (N, C, H, W) in [0, 1] -> logits (N, K).
    """

    def __init__(
        self, model: nn.Module, pixel_space: PixelSpace | None = None, model_inputs: dict[str, Any] | None = None
    ):
        super().__init__()
        self.model = model
        self.pixel_space = pixel_space or PixelSpace()
        self.model_inputs = model_inputs or {}
        self._by_keyword = takes_pixel_values(model)
        self.training = model.training

    def forward(self, pixels: Tensor) -> Tensor:
        inputs = self.pixel_space.from_pixels(pixels)
        parameter = next(self.model.parameters(), None)
        if parameter is not None and parameter.is_floating_point():
            inputs = inputs.to(parameter.dtype)  # bf16 and fp16 evaluation; the pixels themselves stay float32
        if self._by_keyword:
            return extract_logits(self.model(pixel_values=inputs, **self.model_inputs))
        return extract_logits(self.model(inputs, **self.model_inputs))
