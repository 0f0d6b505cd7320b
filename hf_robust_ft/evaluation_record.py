"""What an evaluation by the Trainer gathers while it runs."""

from typing import Any

import torch
from torch import Tensor

from hf_robust_ft.attacks import APGD
from hf_robust_ft.convergence import Convergence
from hf_robust_ft.trust_checks import CHECKED_IMAGES


class EvaluationRecord:
    """What one evaluation found: labels, smallest fooling eps and wrong class of every image, from every process."""

    def __init__(self, epsilons: list[float], dataset: Any = None, rounds: Convergence | None = None):
        self.epsilons = epsilons
        self.dataset = dataset
        self.rounds = rounds
        self.own: list[tuple[Tensor, Tensor]] = []  # smallest eps and wrong classes of this process's batches
        self.num_classes: int | None = None  # the width of the logits
        self.gathered: list[tuple[Tensor, ...]] = []
        self.kept: list[tuple[Tensor, Tensor, int]] = []  # with the number of their batch
        self.outputs: Any = None  # the model's, of the batch at hand

    def add(self, found: tuple[Tensor, ...]) -> None:
        self.gathered.append(tuple(values.cpu() for values in found))

    def next_attack(self) -> APGD | None:
        """The attack of another round, which gathers anew; None where steps are fixed or the accuracy has settled."""
        if self.rounds is None or not self.gathered:
            return None
        attack = self.rounds.after(torch.cat([smallest for _, smallest, _ in self.gathered]).numpy())
        if attack is not None:
            self.gathered = []
        return attack

    def keep_first(self, pixels: Tensor, labels: Tensor) -> None:
        """Keep this process's first images of one size, of the last batch in `own`, for trust checks and pictures."""
        missing = CHECKED_IMAGES - sum(len(labels) for _, labels, _ in self.kept)
        if missing > 0 and (not self.kept or pixels.shape[1:] == self.kept[0][0].shape[1:]):
            self.kept.append((pixels[:missing], labels[:missing], len(self.own) - 1))

    def first_images(self) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels, labels and smallest fooling eps, as found so far, of what was kept."""
        pixels, labels = (torch.cat([kept[part] for kept in self.kept]) for part in (0, 1))
        smallest = torch.cat([self.own[number][0][: len(some)] for _, some, number in self.kept])
        return pixels, labels, smallest
