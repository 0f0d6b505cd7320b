"""Which eps now, and how many attack steps: the schedules as a Trainer callback."""

import copy
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from hf_robust_ft.attacks.threat_model import parse_eps, readable_eps
from hf_robust_ft.provenance.choices import check_choice
from hf_robust_ft.schedules import build_schedule, parse_schedule_args
from hf_robust_ft.training.schedule_arguments import (
    GRANULARITIES,
    SCHEDULE_UNSTATED,
    build_steps_schedule,
    check_can_observe,
    check_overshoot,
)

logger = logging.getLogger(__name__)

CLEAN_SCORES = ("eval_clean_accuracy", "eval_clean_pixel_accuracy", "eval_clean_map")  # one of each task
# Settings of the callback -> the arguments they are made from.
SETTINGS = {
    "eps": "eps",
    "schedule": "eps_schedule",
    "start": "schedule_start",
    "end": "schedule_end",
    "granularity": "schedule_granularity",
    "schedule_args": "schedule_args",
    "overshoot": "schedule_overshoot",
    "seed": "seed",
    "attack_steps_schedule": "attack_steps_schedule",
    "attack_steps_args": "attack_steps_args",
}


class EpsilonSchedulerCallback(TrainerCallback, ExportableState):
    """Sets `current_eps` at the start of every optimizer step.

    `AdversarialTrainer` adds one by itself, made from its arguments. Most schedules are pure functions of
    `global_step / max_steps` and the seed. What an adaptive or per-sample one remembers is in `memory`, which
    `trainer_state.json` keeps and a resumed run takes from there, whatever
    `restore_callback_states_from_checkpoint` says; every process holds the same.

    Args:
        eps: target budget eps_g, in pixel units of [0, 1], as a number or a fraction string.
        schedule: a key of `SCHEDULES`.
        start: share of training before which eps is 0 (T1).
        end: share of training from which eps is eps_g (T2).
        granularity: let eps change at every "epoch" or at every "step".
        schedule_args: the schedule's other arguments.
        overshoot: factor on eps_g in training, at least 1.
        seed: what sampled schedules draw from.
        attack_steps_schedule: for the number of attack steps, a key of `SCHEDULES` without memory, or "eps".
        attack_steps_args: its arguments, `start` and `end` included.

    Raises:
        ValueError: unknown schedule or granularity, or parameters out of range; at the start of training, if an
            epoch's length is needed and unknown, if nothing measures what the schedule observes, or if a resumed
            checkpoint lacks what it remembered.
    """

    def __init__(
        self,
        eps: float | str,
        schedule: str = "hinge",
        start: float = 0.24,
        end: float = 0.74,
        granularity: str = "epoch",
        schedule_args: Mapping[str, Any] | Sequence[str] | None = None,
        overshoot: float = 1.0,
        seed: int = 0,
        attack_steps_schedule: str = "constant",
        attack_steps_args: Mapping[str, Any] | Sequence[str] | None = None,
    ):
        self.follows_args = False
        self.steps_per_epoch: int | None = None
        self._is_training = self._save_waits = False
        self.step_loss: Any = 0.0  # of the optimizer step at hand, on this process
        self._peak_step: int | None = None  # the first at the largest eps of this training; found when asked for
        given = locals()
        self._configure({name: given[name] for name in SETTINGS})

    def _configure(self, settings: dict[str, Any]) -> None:
        granularity, overshoot = settings["granularity"], settings["overshoot"]
        check_choice("schedule_granularity", granularity, GRANULARITIES)
        check_overshoot(overshoot)
        own, steps_own = (parse_schedule_args(settings[name]) for name in ("schedule_args", "attack_steps_args"))
        self.settings = settings | {"schedule_args": own, "attack_steps_args": steps_own}
        self.target_eps = parse_eps(settings["eps"])
        self.peak_eps = self.target_eps * overshoot
        self.alpha = build_schedule(settings["schedule"], settings["start"], settings["end"], own, settings["seed"])
        other_draws = settings["seed"] + 1  # than those of eps
        self.steps_alpha = build_steps_schedule(settings["attack_steps_schedule"], steps_own, self.alpha, other_draws)
        self.granularity = granularity
        self.memory, self.observed_at = self.alpha.begin(), 0
        self.current_eps = self.peak_eps * self.alpha(0.0, 0, self.memory)
        self.current_attack_share = self.steps_alpha(0.0, 0, self.memory)

    @classmethod
    def from_args(cls, args: Any) -> "EpsilonSchedulerCallback":
        """The callback that `AdversarialTrainingArguments` describe; it reads them again when training begins."""
        callback = cls(**_settings(args))
        callback.follows_args = True
        return callback

    def state(self) -> dict:
        """What `trainer_state.json` keeps."""
        attributes = {name: getattr(self, name) for name in ("follows_args", "memory", "observed_at")}
        return {"args": dict(self.settings), "attributes": attributes}

    def described(self, training: Mapping[str, Any]) -> dict[str, Any]:
        """Training settings for a report, with this schedule in them: a user's own may differ from the arguments."""
        ours = {SETTINGS[name]: value for name, value in self.settings.items() if name not in ("eps", "seed")}
        merged = {**training, **ours}
        unused = {name for name, default in SCHEDULE_UNSTATED.items() if merged.get(name) in (default, {})}
        return {name: value for name, value in merged.items() if name not in unused}

    def eps_at(self, step: int, max_steps: int) -> float:
        """The budget of optimizer step `step` (from 0) of `max_steps`; over the images seen, the mean of their own."""
        step = self._period_start(step)
        return self.peak_eps * self.alpha(step / max_steps, step, self.memory)

    def progress_at(self, step: int, max_steps: int) -> float:
        """The share of training, in [0, 1), that was over when the epoch or step began that `step` belongs to."""
        return self._period_start(step) / max_steps

    def may_attack_at(self, step: int, max_steps: int) -> bool:
        """Whether a batch of this step may be attacked: any may with a per-sample schedule."""
        return self.has_own_budgets or self.eps_at(step, max_steps) > 0

    @property
    def trained_eps(self) -> float:
        """The eps that the weights at hand count as trained at, where checkpoints are compared.

        That of the last step; the mean of the images' own; and, of a sampled schedule, always the largest it draws.
        """
        return self.peak_eps if self.alpha.is_random else self.current_eps

    def has_peaked(self, step: int, max_steps: int) -> bool:
        """Whether `step` optimizer steps have come to the largest eps of this training.

        With a schedule that follows what is measured, whether eps is there now; of a per-sample one, that of any image.
        """
        if self.alpha.is_per_sample:
            return max(self.alpha.rule.alphas(self.memory, self.memory["levels"]), default=0.0) >= 1
        if self.alpha.has_memory:
            return self.current_eps >= self.peak_eps * (1 - 1e-9)
        if self._peak_step is None and not self.alpha.is_random:
            starts = range(0, max_steps, self.steps_per_epoch if self.granularity == "epoch" else 1)
            budgets = [self.eps_at(each, max_steps) for each in starts]
            largest = max(budgets) - 1e-12
            self._peak_step = next(each for each, eps in zip(starts, budgets, strict=True) if eps >= largest)
        return self.alpha.is_random or step > self._peak_step

    def attack_share_at(self, step: int, max_steps: int) -> float:
        """The share of the attack steps, in [0, 1], at optimizer step `step`."""
        step = self._period_start(step)
        return self.steps_alpha(step / max_steps, step, self.memory)

    def _period_start(self, step: int) -> int:
        return step - step % self.steps_per_epoch if self.granularity == "epoch" else step

    # ---- What adaptive and per-sample schedules are told -----------------------------

    def observe(self, value: float, step: int, max_steps: int) -> None:
        """Tell an adaptive schedule what was measured after `step` optimizer steps: `alpha.observes` says what."""
        period_ends = self.granularity == "step" or step % self.steps_per_epoch == 0
        self.memory = self.alpha.rule.observe(self.memory, value, step / max_steps, period_ends)
        self.observed_at = step

    @property
    def has_own_budgets(self) -> bool:
        """Whether each image has an eps of its own, above 0 in time."""
        return self.alpha.is_per_sample and self.peak_eps > 0

    def eps_of(self, ids: Sequence[str]) -> list[float]:
        """The budgets of these images, of a per-sample schedule."""
        return [self.peak_eps * alpha for alpha in self.alpha.rule.alphas(self.memory, ids)]

    def record(self, ids: Sequence[str], fooled: Sequence[bool]) -> None:
        """Tell a per-sample schedule how the attack on these images, of every process, ended."""
        self.alpha.rule.record(self.memory, ids, fooled)

    # ---- Trainer's events ------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, train_dataloader=None, **kwargs
    ):
        if self.follows_args:  # a hyper-parameter search changes them after construction
            self._configure(_settings(args))
        self._peak_step = None
        self.steps_per_epoch = steps_per_epoch(train_dataloader, args.gradient_accumulation_steps)
        if self.granularity == "epoch" and self.steps_per_epoch is None:
            raise ValueError(
                "schedule_granularity='epoch' needs to know how long an epoch is, but the training data has no length "
                "(a streamed dataset?). Set schedule_granularity='step'."
            )
        check_can_observe(self.alpha, args)
        if self.alpha.has_memory:
            self.memory, self.observed_at = self.alpha.begin(), 0
            if state.global_step > 0:
                self._remember(state)
        elif not self.alpha.is_random:
            self._check_peak(state.max_steps, getattr(args, "norm", "Linf"))
        self._is_training = True
        self._set_current(min(state.global_step, state.max_steps - 1), state.max_steps)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self.step_loss = 0.0
        self._set_current(state.global_step, state.max_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        # Trainer saves the last step of an epoch before it evaluates that epoch: without what the schedule observes.
        if self.alpha.observes == "accuracy" and control.should_save and self._ends_epoch(state):
            control.should_save, self._save_waits = False, True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        control.should_save = control.should_save or self._save_waits
        self._save_waits = False

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics=None, **kwargs
    ):
        # Training that is stopped within an epoch evaluates there, and once resumed again at the epoch's end.
        counts = self._is_training and state.global_step != self.observed_at and self._ends_epoch(state)
        if self.alpha.observes != "accuracy" or not counts or not any(key.startswith("eval_") for key in metrics or {}):
            return
        accuracies = [metrics[name] for name in CLEAN_SCORES if name in metrics]
        if not accuracies:
            told = f"follows {' or '.join(CLEAN_SCORES)}, and the evaluation gave {sorted(metrics)}"
            raise ValueError(f"eps_schedule={self.alpha.name!r} {told}. It needs one eval_dataset, with labels.")
        self.observe(accuracies[0], state.global_step, state.max_steps)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self._is_training = False
        if self.alpha.observes and self.current_eps < 0.5 * self.peak_eps:
            norm = getattr(args, "norm", "Linf")
            logger.warning(
                f"The schedule {self.alpha.name!r} ended at eps={readable_eps(self.current_eps, norm)} of "
                f"{readable_eps(self.peak_eps, norm)}: train for longer, or change schedule_args, "
                f"{self.settings['schedule_args']}.",
            )

    def _set_current(self, step: int, max_steps: int) -> None:
        self.current_eps = self.eps_at(step, max_steps)
        self.current_attack_share = self.attack_share_at(step, max_steps)

    def _ends_epoch(self, state: TrainerState) -> bool:
        """Whether an epoch has just ended; taken to be so where its length is unknown."""
        return state.global_step > 0 and (self.steps_per_epoch is None or state.global_step % self.steps_per_epoch == 0)

    def _remember(self, state: TrainerState) -> None:
        """Go on from what the checkpoint being resumed says that the schedule had seen."""
        saved = (state.stateful_callbacks or {}).get(type(self).__name__)
        saved = saved[0] if isinstance(saved, list) else saved
        ours = {name: self.settings[name] for name in ("schedule", "schedule_args", "granularity")}
        theirs = {name: (saved or {}).get("args", {}).get(name) for name in ours}
        if theirs != ours or "memory" not in saved["attributes"]:
            raise ValueError(
                f"The schedule {self.alpha.name!r} goes on from what it has seen, and the checkpoint of step "
                f"{state.global_step} holds that of another one: {theirs}, now {ours}. Resume with the settings it "
                "was trained with, or start anew."
            )
        self.memory, self.observed_at = copy.deepcopy(saved["attributes"]["memory"]), saved["attributes"]["observed_at"]
        due = state.global_step
        if self.alpha.observes == "accuracy":
            due -= due % (self.steps_per_epoch or due)
        if self.alpha.observes and self.observed_at < due:
            raise ValueError(
                f"The checkpoint of step {state.global_step} was saved before the {self.alpha.observes} that the "
                f"schedule {self.alpha.name!r} follows was known. Resume from an earlier one; save by save_strategy."
            )

    def _check_peak(self, max_steps: int, norm: str) -> None:
        peak = self.eps_at(max_steps - 1, max_steps)
        if peak >= 0.9 * self.peak_eps * self.alpha(1.0):
            return
        logger.warning(
            f"This schedule reaches only eps={readable_eps(peak, norm)} of {readable_eps(self.peak_eps, norm)} in "
            f"{max_steps} steps{', so no attack will run at all' if peak == 0 else ''}: training is too short for its "
            "granularity. Train for more epochs, set schedule_granularity='step', or lower schedule_end.",
        )


def _settings(args: Any) -> dict[str, Any]:
    return {name: getattr(args, argument) for name, argument in SETTINGS.items()}


def steps_per_epoch(train_dataloader: Any, gradient_accumulation_steps: int) -> int | None:
    """Optimizer steps of an epoch; None where its length is unknown."""
    try:
        return max(math.ceil(len(train_dataloader) / gradient_accumulation_steps), 1)
    except TypeError:  # a streamed dataset
        return None
