"""A segmentation model on pixels in [0, 1]: one set of logits a pixel."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from hf_robust_ft.attacks.model_calls import extract_dense_logits
from hf_robust_ft.attacks.pixels import PixelModel, PixelSpace


class PixelSegmenter(PixelModel):
    """A semantic segmenter on pixels in [0, 1] that returns a plain logits tensor of the masks' size.

    Logits of another size are resized bilinearly (`align_corners=False`), as transformers' losses and
    `post_process_semantic_segmentation` do.

    Args:
        model: a transformers, PEFT or plain module from normalised images to logits (N, K, h, w), which stand in its
            output as `model_calls.extract_dense_logits` says.
        pixel_space: the normalisation the model expects.
        size: (H', W') of the labels; None for the images' own.
        model_inputs: further keyword arguments for every call of the model.

    Shape:
        pixels (N, C, H, W) in [0, 1] -> float32 logits (N, K, H', W').
    """

    def __init__(
        self,
        model: nn.Module,
        pixel_space: PixelSpace | None = None,
        size: tuple[int, int] | None = None,
        model_inputs: dict[str, Any] | None = None,
    ):
        super().__init__(model, pixel_space, model_inputs)
        self.size = None if size is None else tuple(size)

    def forward(self, pixels: Tensor) -> Tensor:
        return resized(extract_dense_logits(self.outputs(pixels)), self.size or tuple(pixels.shape[-2:]))


def resized(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (N, K, h, w) as float32 (N, K, *size)."""
    logits = logits.float()
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
