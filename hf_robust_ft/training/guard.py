"""Few attack steps until they fool themselves: the guard against catastrophic overfitting."""

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from hf_robust_ft.attacks import APGD, AttackResult
from hf_robust_ft.attacks.losses import measuring_loss
from hf_robust_ft.training.remembered import remembered

logger = logging.getLogger(__name__)

CHECKED_IMAGES = 64  # of a batch, on each process
FEWEST_CORRECT = 8  # over all processes; of fewer, no share means anything


class OverfittingGuard(TrainerCallback, ExportableState):
    """Gives up training with few attack steps once the model has learnt to withstand only those.

    Training with one or two steps can collapse: within a few hundred steps the model stays correct under the attack
    it trains on and under no longer one (catastrophic overfitting; Wong, Rice & Kolter 2020, arXiv 2001.03994, who
    stop where PGD breaks a training batch). Every `every` optimizer steps the batch at hand, which the few steps have
    just attacked, is attacked with all `attack_steps`. Where that turns more than `share` of its correct answers into
    errors, the next step checks again; where it does so twice, every later attack takes all its steps.

    A check costs one full attack on `CHECKED_IMAGES` images and a host sync. What it found is in `trainer_state.json`,
    so a resumed run goes on bitwise; counts are summed over the processes, so all decide alike.

    Args:
        share: of the answers that are correct under few steps, how many may turn wrong under many, in (0, 1).
        every: optimizer steps between two checks, at least 1.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(self, share: float, every: int = 50):
        check_guard(share, every)
        self.share, self.every = share, every
        self._forget()

    @classmethod
    def from_args(cls, args: Any) -> "OverfittingGuard | None":
        """The guard that training arguments ask for; None without `attack_guard`."""
        return None if args.attack_guard is None else cls(args.attack_guard, args.attack_guard_every)

    def _forget(self) -> None:
        self.checked_at: int | None = None  # optimizer steps done before the last check
        self.suspicious = False
        self.fell_back_at: int | None = None

    @property
    def fell_back(self) -> bool:
        """Whether every attack takes all its steps from now on."""
        return self.fell_back_at is not None

    def is_due(self, step: int) -> bool:
        """Whether to check the first batch of optimizer step `step` (from 0)."""
        if self.fell_back or step == self.checked_at:
            return False
        return self.suspicious or (step > 0 and step % self.every == 0)

    def watch(
        self, step: int, found: AttackResult, find: Callable[..., AttackResult], full: APGD, accelerator: Accelerator
    ) -> bool:
        """Check the batch at hand if it is due; note: a host sync then.

        Args:
            found: what the training attack made of it.
            find: `(attack=..., first=...)` attacks the first so many of its images.
            full: the training attack with all its steps; it starts here at the images themselves.

        Returns whether this is the check that makes training fall back.
        """
        if not self.is_due(step):
            return False
        full = replace(full, random_start=False, loss=measuring_loss(full.loss))  # it counts errors
        fully = find(attack=full, first=min(CHECKED_IMAGES, len(found.fooled)))
        withstood = ~found.fooled[:CHECKED_IMAGES]
        counts = torch.stack([withstood.sum(), (withstood & ~fully.fooled).sum()])
        return self.judge(step, *accelerator.reduce(counts, "sum").tolist())

    @staticmethod
    def images_of(args: Any, count: int) -> int:
        """How many images a check attacks, over all processes, of an optimizer step of so many."""
        of_process = math.ceil(min(args.train_batch_size, count / args.world_size))
        return min(CHECKED_IMAGES, args.attacked_in_batch(of_process)) * args.world_size

    def judge(self, step: int, few: int, many: int) -> bool:
        """Take in how many images, of all processes, stayed correct under few and under many steps.

        Returns whether this is the check that makes training fall back.
        """
        overfits = few >= FEWEST_CORRECT and many < (1 - self.share) * few
        if overfits and self.suspicious:
            self.fell_back_at = step
            logger.warning(
                "Catastrophic overfitting at step %d: of %d images that are correct under the training attack, %d "
                "withstand all its steps. From now on every attack takes all its steps.", step, few, many,
            )  # fmt: skip
        self.checked_at, self.suspicious = step, overfits and not self.fell_back
        return self.fell_back

    def state(self) -> dict:
        """What `trainer_state.json` keeps."""
        names = ("checked_at", "suspicious", "fell_back_at")
        return {
            "args": {"share": self.share, "every": self.every},
            "attributes": {name: getattr(self, name) for name in names},
        }

    def described(self) -> dict[str, Any]:
        """What a report says: the settings, and the step of the fall back (None where it never came to it)."""
        return {"share": self.share, "every": self.every, "fell_back_at": self.fell_back_at}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self._forget()
        vars(self).update(remembered(self, state))


def check_guard(share: float, every: int) -> None:
    """Raise a ValueError unless these are settings of a guard."""
    if not 0 < share < 1:
        raise ValueError(f"attack_guard is a share in (0, 1), e.g. 0.5, or none; got {share}.")
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"attack_guard_every must be a whole number of at least 1, got {every!r}.")
