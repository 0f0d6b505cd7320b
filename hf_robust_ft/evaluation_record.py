"""What an evaluation by the Trainer gathers while it runs."""

from typing import Any

import torch
from torch import Tensor

from hf_robust_ft.trust_checks import CHECKED_IMAGES


class EvaluationRecord:
    """What one evaluation found: labels, smallest fooling eps and wrong class of every image, from every process."""

    def __init__(self, epsilons: list[float], dataset: Any = None):
        self.epsilons = epsilons
        self.dataset = dataset
        self.num_classes: int | None = None  # the width of the logits
        self.gathered: list[tuple[Tensor, ...]] = []
        self.kept: list[tuple[Tensor, Tensor, Tensor]] = []
        self.outputs: Any = None  # the model's, of the batch at hand

    def add(self, found: tuple[Tensor, ...]) -> None:
        self.gathered.append(tuple(values.cpu() for values in found))

    def keep_first(self, pixels: Tensor, labels: Tensor, smallest_epsilons: Tensor) -> None:
        """Keep this process's first images of one size, for trust checks and pictures, and what was found of them."""
        missing = CHECKED_IMAGES - sum(len(labels) for _, labels, _ in self.kept)
        if missing > 0 and (not self.kept or pixels.shape[1:] == self.kept[0][0].shape[1:]):
            self.kept.append((pixels[:missing], labels[:missing], smallest_epsilons[:missing]))

    def first_images(self) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels, labels and smallest fooling eps of what was kept."""
        pixels, labels, smallest = (torch.cat(parts) for parts in zip(*self.kept, strict=True))
        return pixels, labels, smallest
