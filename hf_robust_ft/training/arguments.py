"""The Trainer's arguments plus the threat model, the eps schedule and the attacks."""

import copy
import math
import os
from dataclasses import dataclass, field, replace
from typing import Any

from hf_robust_ft.attacks import APGD, MEMORY_FORMATS
from hf_robust_ft.attacks.losses import get_loss, measuring_loss
from hf_robust_ft.evaluation.convergence import (
    AUTO,
    FIRST_STEPS,
    STEPS_LIMIT,
    check_steps_limit,
    first_attack,
    steps_under,
)
from hf_robust_ft.evaluation.protocols import check_on_grid, evaluation_attack, resolve_epsilons
from hf_robust_ft.provenance.affects import WEIGHTS, stated_settings
from hf_robust_ft.provenance.choices import check_choice
from hf_robust_ft.training.base.launching import check_deepspeed, refuse_zero_3
from hf_robust_ft.training.mixing import MixingArguments
from hf_robust_ft.training.objectives.arguments import ObjectiveArguments
from hf_robust_ft.training.objectives.structure_arguments import StructureArguments
from hf_robust_ft.training.pass_saving import PassSavingArguments
from hf_robust_ft.training.probe_arguments import ProbeArguments
from hf_robust_ft.training.schedule_arguments import ScheduleArguments, check_can_observe
from hf_robust_ft.training.tuning import TuningArguments
from hf_robust_ft.training.tuning.batch_norm import AS_TRAINER, BATCH_NORM, FROZEN

ROBUST_EVAL = ("end", "epoch", "no")


@dataclass
class AdversarialTrainingArguments(
    ProbeArguments,
    PassSavingArguments,
    MixingArguments,
    ObjectiveArguments,
    ScheduleArguments,
    StructureArguments,
    TuningArguments,
):
    """`TrainingArguments` for `AdversarialTrainer`.

    Groups: what is minimised (`objective*`, `twins_*`, `autolora*`), the threat model (`norm`, `eps`), its schedule
    (`eps_schedule`, `schedule_*`), the training attack (`attack_*`), the schedule of its steps (`attack_steps_*`) and
    its guard (`attack_guard*`), the robust evaluation (`eval_attack_steps*`, `eval_epsilons`, `robust_eval`),
    a first phase for the head alone (`probe_*`), fewer passes (`attack_warm_start`, `attacked_share`,
    `low_resolution*`), mixed images (`mixup_alpha`, `cutmix_alpha`), `memory_format`, and
    `TuningArguments`' own settings.
    Everything else is `TrainingArguments`, with its defaults unchanged. Defaults are those of arXiv 2509.23325.

    What each affects is said on its field (`provenance.affects`), of a subclass's own, too; the rest follows from that.

    Raises:
        ValueError: on construction, for anything out of range; the message names the valid values.
    """

    attack_steps: int = field(
        default=7,
        metadata={
            "help": "APGD steps of the training attack, not of evaluation.",
            "affects": "weights",
            "stated": "always",
        },
    )
    attack_loss: str = field(
        default="ce",
        metadata={
            "help": "Loss that the attacks climb: ce, dlr, dlr_targeted; kl, features (evaluation then takes ce). "
            "Of one label a pixel: pixel_ce (which ce is there), segpgd, masked_ce, ...",
            "affects": ("weights", "measurement"),
            "stated": "always",
        },
    )
    attack_random_start: bool = field(
        default=False,
        metadata={"help": "Start the training attack at random in the ball.", "affects": "weights", "stated": "always"},
    )
    batch_norm: str = field(
        default=FROZEN,
        metadata={
            "help": "BatchNorm's statistics in training: 'frozen' (the checkpoint's), 'frozen_from_attack' (as "
            "when eps leaves 0), 'trainer' (the batch's, which the attack does not meet).",
            "affects": "weights",
            "stated": "always",
            "before": AS_TRAINER,
        },
    )
    memory_format: str = field(
        default="keep",
        metadata={
            "help": f"Layout of the weights: {', '.join(MEMORY_FORMATS)}. 'auto' is channels_last for convolutional "
            "models, but under FSDP.",
            "affects": "weights",
            "stated": "never",
        },
    )
    eval_protocol: str = field(
        default="paper",
        metadata={
            "help": "How evaluate() measures the curve: 'paper' (comparable), 'reliable' (the worst case of four "
            "attacks).",
            "affects": "measurement",
            "stated": "always",
        },
    )
    eval_attack_steps: str = field(
        default=None,
        metadata={
            "help": "APGD steps of the evaluation attack; 'auto': doubled from 10 until the accuracy settles (default: "
            "10; under eval_protocol reliable auto).",
            "affects": "measurement",
            "stated": "always",
        },
    )
    eval_attack_steps_limit: int = field(
        default=STEPS_LIMIT, metadata={"help": "The most steps of 'auto'.", "affects": "measurement"}
    )
    eval_epsilons: list[str] | None = field(
        default=None,
        metadata={
            "help": "Budgets to evaluate at, increasing from 0 to eps (default: every 1/255, the paper's grid).",
            "affects": "measurement",
        },
    )
    robust_eval: str = field(
        default="end",
        metadata={
            "help": "When evaluate() also attacks: 'end' (only outside train()), 'epoch' (at every evaluation), 'no'.",
            "affects": "measurement",
            "stated": "always",
        },
    )
    force_resume: bool = field(
        default=False,
        metadata={"help": "Resume a checkpoint of other settings.", "affects": "launch"},
    )
    # Trainer's own, of which ours does something else.
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "Go on from a checkpoint: its folder, 'last' (newest complete one in output_dir) or 'auto' (the "
            "same, if there is one).",
            "affects": "launch",
        },
    )
    push_to_hub: bool = field(
        default=False,
        metadata={
            "help": "Once measured, publish checkpoint, report, pictures and card as hub_model_id, and compare what "
            "arrived.",
            "affects": "launch",
        },
    )

    def __post_init__(self):
        for name, valid in (
            ("robust_eval", ROBUST_EVAL),
            ("memory_format", MEMORY_FORMATS),
            ("batch_norm", BATCH_NORM),
        ):
            check_choice(name, getattr(self, name), valid)
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        check_on_grid(self.eval_protocol)
        steps = steps_under(self.eval_protocol, self.eval_attack_steps, "eval_attack_steps")
        self.eval_attack_steps = FIRST_STEPS if steps is None else steps
        check_steps_limit(self.eval_attack_steps_limit, self.eval_attack_steps, "eval_attack_steps_limit")
        # Each of these raises on what it cannot be built from.
        self.resolve_objective()
        if get_loss(self.attack_loss).needs_reference and not self.attack_random_start:
            raise ValueError(
                f"attack_loss={self.attack_loss!r} has no gradient at the image itself: set attack_random_start=True."
            )
        if self.attack_steps == AUTO:
            raise ValueError("attack_steps='auto' is for measuring, eval_attack_steps; training takes a count, e.g. 7.")
        schedule = self.build_schedules(self.train_attack.steps, self.seed)
        _ = self.eval_attack, self.evaluation_grid
        refuse_zero_3(self.deepspeed)
        check_deepspeed(self.deepspeed)
        super().__post_init__()
        self.check_structures()
        self.check_taught()
        self.check_mixing()
        self.check_savings()
        check_can_observe(schedule, self)
        self.check_probe()
        if self.memory_format == "channels_last" and self._uses_fsdp:
            raise ValueError("FSDP shards contiguous weights only: set memory_format='auto' or 'keep'.")
        if is_robust_metric(self.metric_for_best_model) and (
            self.robust_eval != "epoch" or len(self.evaluation_grid) == 1
        ):
            raise ValueError(
                f"metric_for_best_model={self.metric_for_best_model!r} is only measured during training with "
                f"robust_eval='epoch' and eps above 0, got robust_eval={self.robust_eval!r}, eps={self.eps}."
            )

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: not the token, since Trainer writes its arguments into every checkpoint."""
        return {**self.__dict__, "hub_token": None}

    def __deepcopy__(self, memo: dict) -> "AdversarialTrainingArguments":
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))  # token and all: a copy stays in memory
        return twin

    def __copy__(self) -> "AdversarialTrainingArguments":
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    @property
    def train_attack(self) -> APGD:
        """The attack of a training step, at its full number of steps."""
        return APGD(steps=self.attack_steps, loss=self.attack_loss, random_start=self.attack_random_start)

    def train_attack_at(self, share: float) -> APGD:
        """The training attack with `share` in [0, 1] of the way from `attack_steps_min` to `attack_steps`, rounded."""
        steps = self.attack_steps_min + math.floor((self.attack_steps - self.attack_steps_min) * share + 0.5)
        return replace(self.train_attack, steps=steps)

    @property
    def eval_attack(self) -> APGD:
        """The attack of a robust evaluation; with steps 'auto', of its first round."""
        attack = evaluation_attack(loss=measuring_loss(self.attack_loss), norm=self.norm)
        return first_attack(attack, self.eval_attack_steps)

    @property
    def evaluation_grid(self) -> list[float]:
        """The budgets of a robust evaluation, from 0 to eps_g."""
        return resolve_epsilons(self.eval_epsilons, self.threat_model)

    @property
    def memory_format_in_use(self) -> str:
        """`memory_format`, where FSDP leaves a choice: it shards contiguous weights only."""
        return "keep" if self.memory_format == "auto" and self._uses_fsdp else self.memory_format

    @property
    def _uses_fsdp(self) -> bool:
        return self.fsdp_plugin_args is not None or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"

    def training_settings(self) -> dict[str, Any]:
        """What a report says of the training, and what runs beside each other are compared by; as JSON has it."""
        tuning = self.tuning_settings()
        settings = {name: value for name, value in stated_settings(self, WEIGHTS).items() if name not in tuning}
        settings["world_size"] = self.world_size
        if self.mixed_precision != ("bf16" if self.bf16 else "fp16" if self.fp16 else "no"):
            settings["mixed_precision"] = self.mixed_precision  # by the configuration of accelerate launch
        return settings | tuning


def is_robust_metric(name: str | None) -> bool:
    """Whether a metric of `evaluate()`, of any of several data sets, is measured under attack."""
    return (name or "").endswith(
        ("adversarial_accuracy", "expected_robustness", "adversarial_pixel_accuracy", "expected_pixel_accuracy",
         "adversarial_mean_iou", "expected_mean_iou", "adversarial_map", "expected_map", "adversarial_map_50",
         "expected_map_50")
    )  # fmt: skip
