"""Which eps now: the schedule as a Trainer callback."""

import math
import warnings
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from hf_robust_ft.schedules import build_schedule
from hf_robust_ft.threat_models import format_eps, parse_eps


class EpsilonSchedulerCallback(TrainerCallback, ExportableState):
    """Sets `current_eps` at the start of every optimizer step, as a pure function of `global_step / max_steps`.

    `AdversarialTrainer` adds one by itself, made from its arguments. A resumed run needs no saved state; the settings
    are stored in `trainer_state.json` all the same, so that a checkpoint tells how it was trained.

    Args:
        eps: target budget eps_g, in pixel units of [0, 1], as a number or a fraction string.
        schedule: a key of `SCHEDULES`.
        start: share of training before which eps is 0 (T1).
        end: share of training from which eps is eps_g (T2).
        granularity: let eps change at every "epoch" or at every "step".

    Raises:
        ValueError: unknown schedule or granularity, or parameters out of range; at the start of training, if an
            epoch's length is needed and unknown.
    """

    def __init__(
        self,
        eps: float | str,
        schedule: str = "hinge",
        start: float = 0.24,
        end: float = 0.74,
        granularity: str = "epoch",
    ):
        self.follows_args = False
        self.steps_per_epoch: int | None = None
        self._configure(eps, schedule, start, end, granularity)

    def _configure(self, eps: float | str, schedule: str, start: float, end: float, granularity: str) -> None:
        if granularity not in ("epoch", "step"):
            raise ValueError(f"Unknown schedule_granularity {granularity!r}. Valid: epoch, step.")
        self.settings = {"eps": eps, "schedule": schedule, "start": start, "end": end, "granularity": granularity}
        self.target_eps = parse_eps(eps)
        self.alpha = build_schedule(schedule, start, end)
        self.granularity = granularity
        self.current_eps = self.target_eps * self.alpha(0.0)

    @classmethod
    def from_args(cls, args: Any) -> "EpsilonSchedulerCallback":
        """The callback that `AdversarialTrainingArguments` describe; it reads them again when training begins."""
        callback = cls(**_settings(args))
        callback.follows_args = True
        return callback

    def state(self) -> dict:
        """What `trainer_state.json` keeps; the schedule itself has no state."""
        return {"args": dict(self.settings), "attributes": {"follows_args": self.follows_args}}

    def eps_at(self, step: int, max_steps: int) -> float:
        """The budget of optimizer step `step` (from 0) of `max_steps`."""
        if self.granularity == "epoch":
            step -= step % self.steps_per_epoch
        return self.target_eps * self.alpha(step / max_steps)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, train_dataloader=None, **kwargs
    ):
        if self.follows_args:  # a hyper-parameter search changes them after construction
            self._configure(**_settings(args))
        if self.granularity == "epoch":
            self.steps_per_epoch = _steps_per_epoch(train_dataloader, args.gradient_accumulation_steps)
        self._check_peak(state.max_steps)
        self.current_eps = self.eps_at(min(state.global_step, state.max_steps - 1), state.max_steps)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self.current_eps = self.eps_at(state.global_step, state.max_steps)

    def _check_peak(self, max_steps: int) -> None:
        peak = self.eps_at(max_steps - 1, max_steps)
        if peak >= 0.9 * self.target_eps * self.alpha((max_steps - 1) / max_steps):
            return
        warnings.warn(
            f"This schedule reaches only eps={format_eps(peak)} of {format_eps(self.target_eps)} in {max_steps} steps"
            f"{', so no attack will run at all' if peak == 0 else ''}: training is too short for its granularity. "
            "Train for more epochs, set schedule_granularity='step', or lower schedule_end.",
            UserWarning,
            stacklevel=2,
        )


def _settings(args: Any) -> dict[str, Any]:
    return {
        "eps": args.eps,
        "schedule": args.eps_schedule,
        "start": args.schedule_start,
        "end": args.schedule_end,
        "granularity": args.schedule_granularity,
    }


def _steps_per_epoch(train_dataloader: Any, gradient_accumulation_steps: int) -> int:
    try:
        batches = len(train_dataloader)
    except TypeError:
        raise ValueError(
            "schedule_granularity='epoch' needs to know how long an epoch is, but the training data has no length "
            "(a streamed dataset?). Set schedule_granularity='step'."
        ) from None
    return max(math.ceil(batches / gradient_accumulation_steps), 1)
