"""The threat model's arguments and its schedule's: how eps, and the number of attack steps, grow over training."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from hf_robust_ft.attacks.threat_model import ThreatModel
from hf_robust_ft.provenance.affects import DeclaredArguments, arguments
from hf_robust_ft.provenance.choices import check_choice
from hf_robust_ft.schedules import SCHEDULES, PerSample, Schedule, build_schedule, parse_schedule_args
from hf_robust_ft.training.guard import check_guard

GRANULARITIES = ("epoch", "step")
FOLLOW_EPS = "eps"


@dataclass
class ThreatModelArguments(DeclaredArguments):
    """What the attacker may do."""

    norm: str = field(
        default="Linf",
        metadata={
            "help": "Perturbation norm: Linf, L2, L1.", "affects": ("weights", "measurement"), "stated": "always",
        },
    )  # fmt: skip
    eps: str = field(
        default="4/255",
        metadata={
            "help": "Target budget eps_g for pixels in [0, 1]: 4/255 or 0.0157.",
            "affects": ("weights", "measurement"),
            "stated": "always",
        },
    )

    @property
    def threat_model(self) -> ThreatModel:
        """The target: norm and eps_g."""
        return ThreatModel(self.norm, self.eps)


@dataclass
class ScheduleArguments(ThreatModelArguments):
    """How training comes to the target: `eps_schedule` and `schedule_*`, `attack_steps_*` and their `attack_guard*`."""

    eps_schedule: str = field(
        default="hinge",
        metadata={
            "help": f"How eps grows over training, hinge being 0, a linear ramp, then eps_g: {', '.join(SCHEDULES)}.",
            "affects": "weights",
            "stated": "always",
        },
    )
    schedule_start: float = field(
        default=0.24,
        metadata={
            "help": "Share of training before which eps is 0 (T1; 12 of 50 epochs is 0.24), of hinge and kin.",
            "affects": "weights",
            "stated": "always",
        },
    )
    schedule_end: float = field(
        default=0.74,
        metadata={
            "help": "Share of training from which eps is eps_g (T2; 37 of 50 epochs), likewise.",
            "affects": "weights",
            "stated": "always",
        },
    )
    schedule_granularity: str = field(
        default="epoch",
        metadata={
            "help": "Let eps change at every 'epoch' (the paper) or at every 'step' (short or streamed training).",
            "affects": "weights",
            "stated": "always",
        },
    )
    schedule_args: list[str] | None = field(
        default=None,
        metadata={
            "help": "The schedule's other arguments, key=value (in Python also a dict), e.g. patience=3.",
            "affects": "weights",
        },
    )
    schedule_overshoot: float = field(
        default=1.0,
        metadata={
            "help": "Train at this multiple of eps_g, e.g. 1.1; evaluation stays at eps_g.", "affects": "weights",
        },
    )  # fmt: skip
    attack_steps_schedule: str = field(
        default="constant",
        metadata={
            "help": "How attack_steps grow from attack_steps_min: 'eps' (in step with eps, whatever schedule that has) "
            "or a schedule of their own, as of eps, but for auto, loss_driven, per_sample.",
            "affects": "weights",
        },
    )
    attack_steps_args: list[str] | None = field(
        default=None,
        metadata={
            "help": "Its arguments, key=value, start and end among them.",
            "affects": "weights",
            "of": "attack_steps_schedule",
        },
    )
    attack_steps_min: int = field(
        default=1,
        metadata={
            "help": "Fewest steps of the training attack.", "affects": "weights", "of": "attack_steps_schedule",
        },
    )  # fmt: skip
    attack_guard: float | None = field(
        default=None,
        metadata={
            "help": "Take all attack_steps for good once they break more than this share (e.g. 0.5) of what withstands "
            "the scheduled ones.",
            "affects": "weights",
        },
    )
    attack_guard_every: int = field(
        default=50, metadata={"help": "Steps between its checks.", "affects": "weights", "of": "attack_guard"}
    )

    @property
    def needs_sample_ids(self) -> bool:
        """Whether the schedule remembers images by an id, which examples then carry as `sample_id`."""
        return SCHEDULES[self.eps_schedule] is PerSample

    def build_schedules(self, attack_steps: int, seed: int) -> Schedule:
        """Check the settings and bring the schedules' arguments into one form; the schedule of eps.

        Args:
            attack_steps: of the training attack, at most.
            seed: what sampled schedules draw from.

        Raises:
            ValueError: for what no schedule can be built from; the message names the valid values.
        """
        check_choice("schedule_granularity", self.schedule_granularity, GRANULARITIES)
        self.schedule_args, self.attack_steps_args = (
            parse_schedule_args(given) or None for given in (self.schedule_args, self.attack_steps_args)
        )
        check_overshoot(self.schedule_overshoot)
        target = self.threat_model
        try:
            ThreatModel(self.norm, target.eps * self.schedule_overshoot)
        except ValueError as error:
            raise ValueError(f"schedule_overshoot={self.schedule_overshoot} times eps={self.eps}: {error}") from None
        own = build_schedule(self.eps_schedule, self.schedule_start, self.schedule_end, self.schedule_args, seed)
        build_steps_schedule(self.attack_steps_schedule, self.attack_steps_args, own)
        if not 1 <= self.attack_steps_min <= attack_steps:
            raise ValueError(
                f"attack_steps_min must be between 1 and attack_steps={attack_steps}, got {self.attack_steps_min}."
            )
        if self.attack_steps_schedule == "constant" and self.attack_steps_min != 1:
            raise ValueError("attack_steps_min does nothing without attack_steps_schedule: set it (e.g. hinge).")
        if self.attack_guard is not None:
            check_guard(self.attack_guard, self.attack_guard_every)
            if self.attack_steps_schedule == "constant":
                raise ValueError("attack_guard does nothing without attack_steps_schedule: every attack is a full one.")
        return own


def build_steps_schedule(name: str, arguments: Mapping[str, Any] | None, of_eps: Schedule, seed: int = 0) -> Schedule:
    """The schedule of the attack steps: that of eps itself, whose memory it then goes by, or one of their own.

    Args:
        name: `FOLLOW_EPS`, or a key of `SCHEDULES` without memory.
        arguments: its own, `start` and `end` included; there are none that follow eps.
        of_eps: the schedule of eps.
        seed: what a sampled schedule of their own draws from.

    Raises:
        ValueError: what `build_schedule` refuses, arguments without effect, or no one eps a batch to follow.
    """
    if name != FOLLOW_EPS:
        return build_schedule(name, arguments=arguments, seed=seed, of="attack steps")
    if arguments:
        raise ValueError(
            f"attack_steps_args={arguments} do nothing: with attack_steps_schedule='eps' steps follow eps."
        )
    if of_eps.is_per_sample:
        raise ValueError(
            "attack_steps_schedule='eps' needs one eps a batch, and under eps_schedule='per_sample' each image has its "
            "own. Choose another eps_schedule, or a schedule of the steps' own, e.g. attack_steps_schedule='hinge'."
        )
    return of_eps


SCHEDULE_DEFAULTS = {
    entry.name: entry.default for entry in fields(ScheduleArguments) if entry not in fields(ThreatModelArguments)
}
# Training at one eps from its first step to its last, with attacks of one length: *fix*.
CONSTANT_EPS = SCHEDULE_DEFAULTS | {"eps_schedule": "constant"}
# Of those that shape the schedules, which a report leaves out at these values; the scheduler may have {} for None.
SCHEDULE_UNSTATED = {
    each.name: each.default
    for each in arguments(ScheduleArguments)
    if each.name.startswith(("schedule_", "attack_steps_")) and each.name != "attack_steps_min" and not each.stated
}


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
