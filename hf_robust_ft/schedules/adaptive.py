"""Adaptive schedules: alpha follows what is measured during training.

The class is the schedule's arguments, and holds no state. What was measured is in a `memory` of JSON values that
`begin` makes, `observe` continues and a call reads, so that a checkpoint can keep it.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from hf_robust_ft.schedules.ramps import hinge

Memory = dict[str, Any]


@dataclass(frozen=True)
class AutoPlateau:
    """Nothing until clean validation accuracy has converged, then a linear ramp to eps_g at the end of training.

    The *auto* baseline of arXiv 2509.23325 (patience 5 epochs, tolerance 2 %), read so: converged is when the best
    accuracy so far is less than `tolerance` above the best of `patience` evaluations ago.

    Args:
        patience: evaluations to look back, one an epoch.
        tolerance: rise in accuracy (in [0, 1]) below which it counts as converged.
        latest: share of training at which the ramp begins at the latest; the paper leaves open what then.

    Raises:
        ValueError: an argument out of range.
    """

    patience: int = 5
    tolerance: float = 0.02
    latest: float = 0.74

    observes: ClassVar[str] = "accuracy"

    def __post_init__(self):
        if isinstance(self.patience, bool) or not isinstance(self.patience, int) or self.patience < 1:
            raise ValueError(f"auto needs patience to be a whole number of at least 1, got {self.patience!r}.")
        if not 0 < self.tolerance <= 1 or not 0 <= self.latest < 1:
            raise ValueError(
                "auto needs tolerance in (0, 1], as accuracy is measured (2 % is 0.02), and latest in [0, 1), got "
                f"tolerance={self.tolerance}, latest={self.latest}."
            )

    def begin(self) -> Memory:
        return {"accuracies": [], "start": None}

    def observe(self, memory: Memory, value: float, progress: float, period_ends: bool = True) -> Memory:
        """The memory after an evaluation at `progress` that measured the clean accuracy `value`."""
        accuracies = [*memory["accuracies"], value]
        start = memory["start"]
        if start is None and len(accuracies) > self.patience:
            rise = max(accuracies) - max(accuracies[: -self.patience])
            start = progress if rise < self.tolerance and progress < self.latest else None
        return {"accuracies": accuracies, "start": start}

    def __call__(self, memory: Memory, progress: float) -> float:
        return hinge(progress, self.latest if memory["start"] is None else memory["start"], 1.0)


@dataclass(frozen=True)
class LossDriven:
    """alpha rises as long as the model copes: while the training loss is at most `share` of what it was at first.

    After the idea of curriculum adversarial training (Cai et al. 2018, arXiv 1805.04807), to make the attack stronger
    once the training loss says that the model withstands it; the rule is our own and no result is published. The
    reference is the loss of the first optimizer step: with a new head about ln(classes). It need not reach eps_g.

    Args:
        share: of the first loss, below which the mean loss of an epoch (or step, by granularity) raises alpha.
        pace: how fast alpha rises, per whole training: 4 takes it from 0 to 1 in a quarter.
        fall: how fast alpha falls otherwise, likewise.

    Raises:
        ValueError: an argument out of range.
    """

    share: float = 0.6
    pace: float = 4.0
    fall: float = 0.0

    observes: ClassVar[str] = "loss"

    def __post_init__(self):
        if not all(0 < value < math.inf for value in (self.share, self.pace)) or not 0 <= self.fall < math.inf:
            raise ValueError(
                "loss_driven needs share and pace above 0 and fall not below 0, got "
                f"share={self.share}, pace={self.pace}, fall={self.fall}."
            )

    def begin(self) -> Memory:
        return {"alpha": 0.0, "first_loss": None, "since": 0.0, "loss": 0.0, "steps": 0}

    def observe(self, memory: Memory, value: float, progress: float, period_ends: bool = True) -> Memory:
        """The memory after the optimizer step that ends at `progress` and had the loss `value`."""
        first = value if memory["first_loss"] is None else memory["first_loss"]
        loss, steps = memory["loss"] + value, memory["steps"] + 1
        if not period_ends:
            return memory | {"first_loss": first, "loss": loss, "steps": steps}
        speed = self.pace if loss / steps <= self.share * first else -self.fall
        alpha = min(max(memory["alpha"] + speed * (progress - memory["since"]), 0.0), 1.0)
        return {"alpha": alpha, "first_loss": first, "since": progress, "loss": 0.0, "steps": 0}

    def __call__(self, memory: Memory, progress: float) -> float:
        return memory["alpha"]
