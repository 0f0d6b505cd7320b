"""Between what an image processor makes (`pixel_values`) and what an attacker changes (pixels in [0, 1])."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from hf_robust_ft.attacks.model_calls import extract_logits, needs_keyword
from hf_robust_ft.attacks.processor_maps import map_of


@lru_cache
def _channel_constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # cached: an inference tensor would break every later attack
        return torch.tensor(values, device=device, dtype=dtype).view(-1, 1, 1)


@lru_cache
def _channel_order(channels: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(channels, device=device)


@dataclass(frozen=True)
class PixelSpace:
    """The per-channel affine map of an image processor: `pixel_values = (pixels - mean) / std`.

    Args:
        mean: one value per channel of `pixel_values`, in pixel units of [0, 1].
        std: one positive value per channel of `pixel_values`, in pixel units of [0, 1].
        channels: which channel of the pixels each channel of `pixel_values` shows, e.g. (2, 1, 0) where a model takes
            BGR; None where their order is the same.

    Raises:
        ValueError: different lengths, a std that is not positive, or channels that are no order of them.
    """

    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    channels: tuple[int, ...] | None = None

    def __post_init__(self):
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        finite = all(math.isfinite(value) for value in (*self.mean, *self.std))
        if len(self.mean) != len(self.std) or not finite or not all(value > 0 for value in self.std):
            raise ValueError(
                f"PixelSpace needs one mean and one positive std per channel, got mean={self.mean}, std={self.std}."
            )
        if self.channels is None:
            return
        order = tuple(int(channel) for channel in self.channels)
        if sorted(order) != list(range(len(self.mean))):
            raise ValueError(
                f"channels must be an order of the {len(self.mean)} channels, 0 to {len(self.mean) - 1} once each; got "
                f"{self.channels}."
            )
        object.__setattr__(self, "channels", None if list(order) == sorted(order) else order)

    def __repr__(self) -> str:
        order = "" if self.channels is None else f", channels={self.channels}"
        return f"PixelSpace(mean={self.mean}, std={self.std}{order})"

    def settings(self) -> dict[str, list]:
        """As plain JSON values: `mean` and `std`, and `channels` where their order changes."""
        order = {} if self.channels is None else {"channels": list(self.channels)}
        return {"mean": list(self.mean), "std": list(self.std), **order}

    def to_pixels(self, pixel_values: Tensor) -> Tensor:
        """Undo the normalisation: (N, C, H, W) model inputs to float32 pixels in [0, 1], up to rounding."""
        pixel_values = pixel_values.float()
        mean, std = self._constants(pixel_values)
        pixels = pixel_values * std + mean
        if self.channels is None:
            return pixels
        back = tuple(self.channels.index(channel) for channel in range(len(self.channels)))
        return pixels.index_select(-3, _channel_order(back, pixels.device))

    def clipped_pixels(self, pixel_values: Tensor) -> Tensor:
        """The same in [0, 1] exactly, as attacks take them; `batch_checks` tells of more than rounding."""
        return self.to_pixels(pixel_values).clamp(0, 1)

    def from_pixels(self, pixels: Tensor) -> Tensor:
        """Normalise (N, C, H, W) pixels in [0, 1] as the processor does."""
        mean, std = self._constants(pixels)
        if self.channels is not None:
            pixels = pixels.index_select(-3, _channel_order(self.channels, pixels.device))
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
        """The map of an image processor, found by trying it on plain colours and verified on other images.

        Takes transformers' image processors, its timm wrapper, what holds one as `image_processor`, and whatever is
        called as they are.

        Raises:
            ValueError: it makes no `pixel_values` (1, 3, H, W) of an image, or is no affine map of each channel (in
                any order of them).
        """
        found = map_of(getattr(processor, "image_processor", processor))
        return cls(found.mean, found.std, found.channels)


def input_dtype(model: nn.Module) -> torch.dtype | None:
    """The floating dtype of the model's first convolution, which embeds images, or else of its first parameter."""
    first = None
    for parameter in model.parameters():  # at every forward, so no further than the first convolution
        if parameter.is_floating_point():
            if parameter.ndim == 4:
                return parameter.dtype
            first = parameter if first is None else first
    return None if first is None else first.dtype


class PixelModel(nn.Module):
    """A model on pixels in [0, 1]: what is common to classifiers and segmenters.

    Args:
        model: a transformers, PEFT, timm or plain module of normalised images. It is given them as the first argument,
            or as `pixel_values=` where its forward has that parameter elsewhere.
        pixel_space: the normalisation the model expects.
        model_inputs: further keyword arguments for every call of the model.
    """

    def __init__(
        self, model: nn.Module, pixel_space: PixelSpace | None = None, model_inputs: dict[str, Any] | None = None
    ):
        super().__init__()
        self.model = model
        self.pixel_space = pixel_space or PixelSpace()
        self.model_inputs = model_inputs or {}
        self._by_keyword = needs_keyword(model)
        self.training = model.training

    def outputs(self, pixels: Tensor) -> Any:
        """What the model makes of pixels (N, C, H, W)."""
        inputs = self.pixel_space.from_pixels(pixels)
        dtype = input_dtype(self.model)
        if dtype is not None:
            inputs = inputs.to(dtype)  # bf16 and fp16 evaluation; the pixels themselves stay float32
        if self._by_keyword:
            return self.model(pixel_values=inputs, **self.model_inputs)
        return self.model(inputs, **self.model_inputs)


class PixelClassifier(PixelModel):
    """A classifier on pixels in [0, 1] that returns a plain logits tensor: the shape attack libraries expect.

    The model's logits stand in its output as `model_calls.extract_logits` says.

    Shape:
        pixels (N, C, H, W) in [0, 1] -> logits (N, K).
    """

    def forward(self, pixels: Tensor) -> Tensor:
        return extract_logits(self.outputs(pixels))
