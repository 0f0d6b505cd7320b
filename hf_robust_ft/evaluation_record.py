"""What an evaluation by the Trainer gathers while it runs."""

from typing import Any

from torch import Tensor

from hf_robust_ft.trust_checks import CHECKED_IMAGES


class EvaluationRecord:
    """What one evaluation found: labels, smallest fooling eps and wrong class of every image, from every process."""

    def __init__(self, epsilons: list[float], dataset: Any = None):
        self.epsilons = epsilons
        self.dataset = dataset
        self.gathered: list[tuple[Tensor, ...]] = []
        self.kept: list[tuple[Tensor, Tensor]] = []
        self.outputs: Any = None  # the model's, of the batch at hand

    def add(self, found: tuple[Tensor, ...]) -> None:
        self.gathered.append(tuple(values.cpu() for values in found))

    def keep_for_checks(self, pixels: Tensor, labels: Tensor) -> None:
        """Keep the first images of this process for the trust checks."""
        if sum(len(kept) for _, kept in self.kept) < CHECKED_IMAGES:
            self.kept.append((pixels, labels))
