"""What an evaluation by the Trainer gathers while it runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hf_robust_ft.attacks import APGD, Square
from hf_robust_ft.attacks.pass_meter import PassMeter
from hf_robust_ft.attacks.pixels import PixelClassifier
from hf_robust_ft.evaluation.checked_images import CHECKED_IMAGES, ClassReservoir
from hf_robust_ft.evaluation.convergence import Convergence
from hf_robust_ft.evaluation.protocols import Outcome


class EvaluationRecord:
    """What one evaluation found: labels, smallest fooling eps and wrong class of every image, from every process."""

    def __init__(self, epsilons: list[float], dataset: Any = None, rounds: Convergence | None = None, seed: int = 0):
        self.epsilons = epsilons
        self.dataset = dataset
        self.rounds = rounds
        # Of this process's batches: smallest eps, wrong classes, and whether examples were found again (-1: none).
        self.own: list[tuple[Tensor, Tensor, Tensor]] = []
        self.num_classes: int | None = None  # the width of the logits
        self.gathered: list[tuple[Tensor, ...]] = []  # labels and the same, of every process
        self.image_hashes: list[Tensor] = []  # of every process
        self.passes = [0, 0]  # images in this process's forwards and gradients
        self.checked = ClassReservoir(CHECKED_IMAGES, seed)  # for trust checks and pictures, of this process's images
        self._own_images = 0
        self.outputs: Any = None  # the model's, of the batch at hand

    def add(self, found: tuple[Tensor, ...]) -> None:
        self.gathered.append(tuple(values.cpu() for values in found))

    def next_attack(self) -> APGD | Square | None:
        """The attack of another round, which gathers anew; None where steps are fixed or the accuracy has settled."""
        if self.rounds is None or not self.gathered:
            return None
        attack = self.rounds.after(torch.cat([smallest for _, smallest, *_ in self.gathered]).numpy())
        if attack is not None:
            self.gathered = []
        return attack

    @contextmanager
    def metered(self, classifier: PixelClassifier) -> Iterator[None]:
        """Count what goes through the classifier in the block."""
        with PassMeter(classifier) as meter:
            yield
        self.passes = [self.passes[0] + meter.forwards, self.passes[1] + meter.gradients]

    def add_own(self, pixels: Tensor | None, labels: Tensor, outcome: Outcome, found_again: Tensor) -> None:
        """Enter what was found of this process's next batch; without pixels it is not there to be checked."""
        if pixels is not None:
            self.checked.add(pixels, labels, self._own_images)
        self._own_images += len(labels)
        self.own.append((outcome.smallest_eps, outcome.wrong_classes, found_again))

    def checked_images(self) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels, labels and smallest fooling eps, as found so far, of what was drawn."""
        pixels, labels, positions = self.checked.images()
        return pixels, labels, torch.cat([smallest for smallest, *_ in self.own])[positions]

    def classes(self) -> Tensor:
        """The classes that are the label or the wrong prediction of some image of any process, int64 (M,)."""
        found = torch.cat([torch.cat([labels, wrong]) for labels, _, wrong, _ in self.gathered]).unique()
        return found[found >= 0]
