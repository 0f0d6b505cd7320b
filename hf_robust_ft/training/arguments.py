"""The Trainer's arguments plus the threat model, the eps schedule and the attacks."""

import copy
import math
import os
from dataclasses import dataclass, field, replace
from typing import Any

from hf_robust_ft.attacks import APGD, MEMORY_FORMATS
from hf_robust_ft.attacks.threat_model import ThreatModel
from hf_robust_ft.evaluation.convergence import FIRST_STEPS, STEPS_LIMIT, check_steps_limit, first_attack, steps_under
from hf_robust_ft.evaluation.protocols import check_on_grid, evaluation_attack, resolve_epsilons
from hf_robust_ft.schedules import SCHEDULES, PerSample, Schedule, build_schedule, parse_schedule_args
from hf_robust_ft.training.base.launching import check_deepspeed, refuse_zero_3
from hf_robust_ft.training.guard import check_guard
from hf_robust_ft.training.tuning import TuningArguments
from hf_robust_ft.training.tuning.batch_norm import FROZEN, check_policy

GRANULARITIES = ("epoch", "step")
ROBUST_EVAL = ("end", "epoch", "no")


@dataclass
class AdversarialTrainingArguments(TuningArguments):
    """`TrainingArguments` for `AdversarialTrainer`.

    Groups: the threat model (`norm`, `eps`), its schedule (`eps_schedule`, `schedule_*`), the training attack
    (`attack_*`), the schedule of its steps (`attack_steps_*`) and its guard (`attack_guard*`), the robust evaluation
    (`eval_attack_steps*`, `eval_epsilons`, `robust_eval`), `memory_format`, and `TuningArguments`' own settings.
    Everything else is `TrainingArguments`, with its defaults unchanged. Defaults are those of arXiv 2509.23325.

    Raises:
        ValueError: on construction, for anything out of range; the message names the valid values.
    """

    norm: str = field(default="Linf", metadata={"help": "Perturbation norm: Linf, L2, L1."})
    eps: str = field(
        default="4/255",
        metadata={"help": "Target budget eps_g for pixels in [0, 1]: 4/255 or 0.0157."},
    )
    eps_schedule: str = field(
        default="hinge",
        metadata={
            "help": f"How eps grows over training, hinge being 0, a linear ramp, then eps_g: {', '.join(SCHEDULES)}."
        },
    )
    schedule_start: float = field(
        default=0.24,
        metadata={"help": "Share of training before which eps is 0 (T1; 12 of 50 epochs is 0.24), of hinge and kin."},
    )
    schedule_end: float = field(
        default=0.74,
        metadata={"help": "Share of training from which eps is eps_g (T2; 37 of 50 epochs), likewise."},
    )
    schedule_granularity: str = field(
        default="epoch",
        metadata={
            "help": "Let eps change at every 'epoch' (the paper) or at every 'step' (short or streamed training)."
        },
    )
    schedule_args: list[str] | None = field(
        default=None,
        metadata={"help": "The schedule's other arguments, key=value (in Python also a dict), e.g. patience=3."},
    )
    schedule_overshoot: float = field(
        default=1.0, metadata={"help": "Train at this multiple of eps_g, e.g. 1.1; evaluation stays at eps_g."}
    )
    attack_steps: int = field(default=7, metadata={"help": "APGD steps of the training attack, not of evaluation."})
    attack_steps_schedule: str = field(
        default="constant",
        metadata={
            "help": "How attack_steps grow from attack_steps_min, whatever eps does: a schedule as of eps, but for "
            "auto, loss_driven, per_sample."
        },
    )
    attack_steps_args: list[str] | None = field(
        default=None, metadata={"help": "Its arguments, key=value, start and end among them."}
    )
    attack_steps_min: int = field(default=1, metadata={"help": "Fewest steps of the training attack."})
    attack_loss: str = field(default="ce", metadata={"help": "Loss that the attacks climb: ce, dlr, dlr_targeted."})
    attack_random_start: bool = field(
        default=False,
        metadata={"help": "Start the training attack at random in the ball."},
    )
    attack_guard: float | None = field(
        default=None,
        metadata={
            "help": "Take all attack_steps for good once they break more than this share (e.g. 0.5) of what withstands "
            "the scheduled ones."
        },
    )
    attack_guard_every: int = field(default=50, metadata={"help": "Steps between its checks."})
    batch_norm: str = field(
        default=FROZEN,
        metadata={
            "help": "BatchNorm's statistics in training: 'frozen' (the checkpoint's), 'frozen_from_attack' (as "
            "when eps leaves 0), 'trainer' (the batch's, which the attack does not meet)."
        },
    )
    memory_format: str = field(
        default="keep",
        metadata={
            "help": f"Layout of the weights: {', '.join(MEMORY_FORMATS)}. 'auto' is channels_last for convolutional "
            "models, but under FSDP."
        },
    )
    eval_protocol: str = field(
        default="paper",
        metadata={
            "help": "How evaluate() measures the curve: 'paper' (comparable), 'reliable' (the worst case of three "
            "attacks)."
        },
    )
    eval_attack_steps: str = field(
        default=None,
        metadata={
            "help": "APGD steps of the evaluation attack; 'auto': doubled from 10 until the accuracy settles (default: "
            "10; under eval_protocol reliable auto)."
        },
    )
    eval_attack_steps_limit: int = field(default=STEPS_LIMIT, metadata={"help": "The most steps of 'auto'."})
    eval_epsilons: list[str] | None = field(
        default=None,
        metadata={"help": "Budgets to evaluate at, increasing from 0 to eps (default: every 1/255, the paper's grid)."},
    )
    robust_eval: str = field(
        default="end",
        metadata={
            "help": "When evaluate() also attacks: 'end' (only outside train()), 'epoch' (at every evaluation), 'no'."
        },
    )
    force_resume: bool = field(
        default=False,
        metadata={"help": "Resume a checkpoint of other settings."},
    )
    # Trainer's own, of which ours does something else.
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "Go on from a checkpoint: its folder, 'last' (newest complete one in output_dir) or 'auto' (the "
            "same, if there is one)."
        },
    )
    push_to_hub: bool = field(
        default=False,
        metadata={
            "help": "Once measured, publish checkpoint, report, pictures and card as hub_model_id, and compare what "
            "arrived."
        },
    )

    def __post_init__(self):
        for name, valid in (
            ("schedule_granularity", GRANULARITIES),
            ("robust_eval", ROBUST_EVAL),
            ("memory_format", MEMORY_FORMATS),
        ):
            if getattr(self, name) not in valid:
                raise ValueError(f"Unknown {name} {getattr(self, name)!r}. Valid: {', '.join(valid)}.")
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        check_on_grid(self.eval_protocol)
        steps = steps_under(self.eval_protocol, self.eval_attack_steps, "eval_attack_steps")
        self.eval_attack_steps = FIRST_STEPS if steps is None else steps
        check_steps_limit(self.eval_attack_steps_limit, "eval_attack_steps_limit")
        check_policy(self.batch_norm)
        # Each of these raises on what it cannot be built from.
        schedule = self._build_schedules()
        _ = self.train_attack, self.eval_attack, self.evaluation_grid
        refuse_zero_3(self.deepspeed)
        check_deepspeed(self.deepspeed)
        super().__post_init__()
        check_can_observe(schedule, self)
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
    def threat_model(self) -> ThreatModel:
        """The target: norm and eps_g."""
        return ThreatModel(self.norm, self.eps)

    @property
    def train_attack(self) -> APGD:
        """The attack of a training step, at its full number of steps."""
        return APGD(steps=self.attack_steps, loss=self.attack_loss, random_start=self.attack_random_start)

    @property
    def needs_sample_ids(self) -> bool:
        """Whether the schedule remembers images by an id, which examples then carry as `sample_id`."""
        return SCHEDULES[self.eps_schedule] is PerSample

    def train_attack_at(self, share: float) -> APGD:
        """The training attack with `share` in [0, 1] of the way from `attack_steps_min` to `attack_steps`, rounded."""
        steps = self.attack_steps_min + math.floor((self.attack_steps - self.attack_steps_min) * share + 0.5)
        return replace(self.train_attack, steps=steps)

    @property
    def eval_attack(self) -> APGD:
        """The attack of a robust evaluation; with steps 'auto', of its first round."""
        return first_attack(evaluation_attack(loss=self.attack_loss, norm=self.norm), self.eval_attack_steps)

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

    def _build_schedules(self) -> Schedule:
        """Check the schedules' settings and bring their arguments into one form; the schedule of eps."""
        self.schedule_args, self.attack_steps_args = (
            parse_schedule_args(given) or None for given in (self.schedule_args, self.attack_steps_args)
        )
        check_overshoot(self.schedule_overshoot)
        target = self.threat_model
        try:
            ThreatModel(self.norm, target.eps * self.schedule_overshoot)
        except ValueError as error:
            raise ValueError(f"schedule_overshoot={self.schedule_overshoot} times eps={self.eps}: {error}") from None
        steps = build_schedule(self.attack_steps_schedule, arguments=self.attack_steps_args, of="attack steps")
        if not 1 <= self.attack_steps_min <= self.train_attack.steps:
            raise ValueError(
                f"attack_steps_min must be between 1 and attack_steps={self.attack_steps}, got {self.attack_steps_min}."
            )
        if steps.name == "constant" and self.attack_steps_min != 1:
            raise ValueError("attack_steps_min does nothing without attack_steps_schedule: set it (e.g. hinge).")
        if self.attack_guard is not None:
            check_guard(self.attack_guard, self.attack_guard_every)
            if steps.name == "constant":
                raise ValueError("attack_guard does nothing without attack_steps_schedule: every attack is a full one.")
        return build_schedule(self.eps_schedule, self.schedule_start, self.schedule_end, self.schedule_args, self.seed)

    def training_settings(self) -> dict[str, Any]:
        """What a report says of the training: the protocol, not every argument."""
        names = (
            "norm", "eps", "eps_schedule", "schedule_start", "schedule_end", "schedule_granularity", "attack_steps",
            "attack_loss", "attack_random_start", "batch_norm", "num_train_epochs", "max_steps",
            "per_device_train_batch_size", "gradient_accumulation_steps", "world_size", "learning_rate",
            "weight_decay", "warmup_steps", "adam_beta1", "adam_beta2", "label_smoothing_factor", "seed", "bf16",
            "fp16",
        )  # fmt: skip
        settings = {name: getattr(self, name) for name in names} | self.tuning_settings()
        unused = {"tf32": None, "schedule_args": None, "schedule_overshoot": 1.0, "attack_steps_schedule": "constant"}
        settings |= {name: getattr(self, name) for name, value in unused.items() if getattr(self, name) != value}
        if self.mixed_precision != ("bf16" if self.bf16 else "fp16" if self.fp16 else "no"):
            settings["mixed_precision"] = self.mixed_precision  # by the configuration of accelerate launch
        if "attack_steps_schedule" in settings:
            settings |= {"attack_steps_args": self.attack_steps_args, "attack_steps_min": self.attack_steps_min}
        return {**settings, "optim": str(self.optim.value), "lr_scheduler_type": str(self.lr_scheduler_type.value)}


def is_robust_metric(name: str | None) -> bool:
    """Whether a metric of `evaluate()`, of any of several data sets, is measured under attack."""
    return (name or "").endswith(("adversarial_accuracy", "expected_robustness"))


def check_overshoot(overshoot: float) -> None:
    """Raise unless it is a factor on eps_g that makes training no weaker."""
    if not 1 <= overshoot < math.inf:
        raise ValueError(f"schedule_overshoot is a factor on eps_g of at least 1, e.g. 1.1; got {overshoot}.")


def check_can_observe(schedule: Schedule, args: Any) -> None:
    """Raise unless training measures what an adaptive schedule follows: `auto` needs accuracy after each epoch."""
    if schedule.observes != "accuracy" or (args.eval_strategy == "epoch" and args.eval_delay == 0):
        return
    raise ValueError(
        f"eps_schedule={schedule.name!r} waits for validation accuracy to level off, so it needs an evaluation after "
        f"each epoch: set eval_strategy='epoch' and eval_delay=0, and pass an eval_dataset. Got eval_strategy="
        f"{args.eval_strategy.value!r}, eval_delay={args.eval_delay}."
    )
