"""Are these masks ones that an attack, and the model's own loss, can work on? It reads values: for the CPU."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_robust_ft.attacks.batch_checks import name_image


@dataclass(frozen=True)
class MaskCheck:
    """Checks `labels` (N, H, W) of one class index a pixel, as `batch_checks.check_labels` does those of one an image.

    Args:
        ignore_index: the label of pixels that count nowhere, as the model's own loss has it; None without one.
    """

    ignore_index: int | None = None

    def __call__(
        self, labels: Tensor, num_images: int, num_labels: int | None = None, first: int | None = None
    ) -> None:
        """Raise a ValueError unless `labels` is int64 (N, H, W) of 0..K-1 or `ignore_index`, some labelled in each."""
        self._check_shape(labels, num_images)
        ignored = torch.zeros_like(labels, dtype=torch.bool)
        if self.ignore_index is not None:
            ignored = labels == self.ignore_index
        bad = (labels < 0) if num_labels is None else (labels < 0) | (labels >= num_labels)
        bad &= ~ignored
        if bad.any():
            count = "K" if num_labels is None else num_labels
            raise ValueError(
                f"Masks must hold class indices in 0..{count}-1 or {self.ignore_index} (ignored), got "
                f"{int(labels[bad][0])} ({name_image(bad.flatten(1).any(1), first)}). Pixels that are not to count "
                f"must be {self.ignore_index}, which the model's own loss leaves out (semantic_loss_ignore_index in "
                "its config); masks that count classes from 1 (ADE20K) need do_reduce_labels=True in the image "
                "processor; for a wrong class count load the model with num_labels=<number of classes> and "
                "ignore_mismatched_sizes=True."
            )
        empty = ignored.flatten(1).all(1)
        if empty.any():
            raise ValueError(
                f"The mask of {name_image(empty, first)} has no labelled pixel: all are {self.ignore_index} (ignored), "
                "so there is nothing to learn or attack. Filter such images out, or crop around what is labelled."
            )

    def _check_shape(self, labels: Tensor, num_images: int) -> None:
        fits = isinstance(labels, Tensor) and labels.ndim == 3 and len(labels) == num_images
        if fits and labels.dtype == torch.int64:
            return
        got = f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        cure = "Cast whole numbers with .long(), and take a channel axis out with .squeeze(1)."
        if isinstance(labels, Tensor) and labels.ndim == 1:
            cure = "For one label an image load the model with AutoModelForImageClassification."
        raise ValueError(
            f"labels of a segmentation model must be masks of one class index a pixel, int64 of shape ({num_images}, "
            f"H, W); got {got}. {cure}"
        )
