"""The schedules by name, and what binds one to its arguments."""

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hf_robust_ft.schedules.adaptive import AutoPlateau, LossDriven
from hf_robust_ft.schedules.per_sample import PerSample
from hf_robust_ft.schedules.ramps import (
    constant,
    cosine,
    exponential,
    hinge,
    linear_warmup,
    none,
    piecewise_linear,
    smoothed_hinge,
)
from hf_robust_ft.schedules.sampled import beta, uniform

# To add one, see .github/CONTRIBUTING.md.
SCHEDULES: dict[str, Callable[..., Any]] = {
    "none": none,
    "constant": constant,
    "linear_warmup": linear_warmup,
    "hinge": hinge,
    "cosine": cosine,
    "smoothed_hinge": smoothed_hinge,
    "piecewise_linear": piecewise_linear,
    "exponential": exponential,
    "uniform": uniform,
    "beta": beta,
    "auto": AutoPlateau,
    "loss_driven": LossDriven,
    "per_sample": PerSample,
}
_SUPPLIED = ("progress", "seed", "step")  # by the caller, not by the user


@dataclass(frozen=True)
class Schedule:
    """A schedule with its arguments bound: `schedule(progress, step, memory)` is alpha, in [0, 1].

    Args:
        name: a key of `SCHEDULES`.
        rule: the function of progress alone or of progress and step, or the adaptive or per-sample schedule.
        is_random: whether the rule depends on the step, by a draw.
    """

    name: str
    rule: Callable[..., Any]
    is_random: bool = False

    @property
    def observes(self) -> str | None:
        """What an adaptive schedule has to be told: "accuracy" after each epoch, or "loss" after each step."""
        return getattr(self.rule, "observes", None)

    @property
    def is_per_sample(self) -> bool:
        return isinstance(self.rule, PerSample)

    @property
    def has_memory(self) -> bool:
        return hasattr(self.rule, "begin")

    def begin(self) -> dict[str, Any]:
        """The memory of a run that begins; empty for schedules without state."""
        return self.rule.begin() if self.has_memory else {}

    def __call__(self, progress: float, step: int = 0, memory: dict[str, Any] | None = None) -> float:
        if self.has_memory:
            return self.rule(self.begin() if memory is None else memory, progress)
        return self.rule(progress, step=step) if self.is_random else self.rule(progress)


def build_schedule(
    name: str,
    start: float = 0.24,
    end: float = 0.74,
    arguments: Mapping[str, Any] | None = None,
    seed: int = 0,
    of: str = "eps",
) -> Schedule:
    """Bind a schedule's parameters.

    Args:
        name: a key of `SCHEDULES`; it is given those of `start`, `end` and `seed` that its signature names.
        start: share of training before which alpha is 0 (T1).
        end: share of training from which alpha is 1 (T2).
        arguments: its other parameters, by name.
        seed: what a sampled schedule draws from.
        of: what is scheduled: "eps", or "attack steps", for which `arguments` may hold `start` and `end` as well.

    Raises:
        ValueError: unknown name, arguments that the schedule does not take, lacks or refuses (its signature is shown),
            or not 0 <= start <= end <= 1 for the parameters the schedule uses.
    """
    if name not in SCHEDULES:
        valid = [*SCHEDULES] if of == "eps" else ["eps", *SCHEDULES]  # steps may follow eps
        raise ValueError(f"Unknown {of} schedule {name!r}. Valid schedules: {', '.join(valid)}.")
    rule, arguments = SCHEDULES[name], dict(arguments or {})
    parameters = inspect.signature(rule).parameters
    shares = {key: value for key, value in (("start", start), ("end", end)) if key in parameters}
    if of != "eps":
        shares = {key: arguments.pop(key, value) for key, value in shares.items()}
    help_text = _signature(name, rule, of)
    _check_arguments(name, rule, arguments, set(shares), help_text)
    _check_shares(shares, of)
    try:
        if inspect.isclass(rule):
            if of != "eps":
                raise ValueError(f"The {of} follow progress alone, not what is measured of eps; choose e.g. hinge.")
            return Schedule(name, rule(**arguments))
        is_random = "step" in parameters
        given = {**shares, **arguments, **({"seed": seed} if "seed" in parameters else {})}
        bound = Schedule(name, lambda progress, **now: rule(progress, **given, **now), is_random)
        bound(0.5)  # functions check their arguments when they are called
    except TypeError as error:
        raise ValueError(f"The schedule {name!r} cannot use {arguments} ({error}). {help_text}") from None
    except ValueError as error:
        raise ValueError(f"{error} {help_text}") from None
    return bound


def _check_arguments(
    name: str, rule: Callable[..., Any], arguments: Mapping[str, Any], taken: set[str], help_text: str
) -> None:
    parameters = inspect.signature(rule).parameters
    own = {key: entry for key, entry in parameters.items() if key not in _SUPPLIED and key not in taken}
    wrong = sorted(set(arguments) - set(own))
    lacking = sorted(key for key, entry in own.items() if entry.default is entry.empty and key not in arguments)
    if not wrong and not lacking:
        return
    problem = f"does not take {', '.join(wrong)}" if wrong else f"needs {', '.join(lacking)}"
    raise ValueError(f"The schedule {name!r} {problem}. {help_text}")


def _signature(name: str, rule: Callable[..., Any], of: str) -> str:
    """How the schedule is called, without what the trainer supplies."""
    signature = inspect.signature(rule)
    own = [entry for key, entry in signature.parameters.items() if key not in _SUPPLIED]
    shares = [f"{key} is schedule_{key}" for key in ("start", "end") if key in signature.parameters and of == "eps"]
    shown = signature.replace(parameters=own, return_annotation=signature.empty)
    return f"Its arguments: {name}{shown}{'; ' if shares else ''}{', '.join(shares)}."


def _check_shares(used: Mapping[str, float], of: str) -> None:
    prefix = "schedule_" if of == "eps" else ""
    for key, value in used.items():
        if not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise ValueError(
                f"{prefix}{key}={value} must lie in [0, 1]: it is a share of training (epoch 12 of 50 is 0.24)."
            )
    start, end = used.get("start"), used.get("end")
    if start is None or end is None:
        return
    if start > end:
        raise ValueError(f"{prefix}start={start} is after {prefix}end={end}: the ramp would end before it begins.")
    if start == end > 0 and of == "eps":
        warnings.warn(
            f"schedule_start and schedule_end are both {start}: eps jumps from 0 to its full value in one step, "
            "which collapsed training in the paper (Table 7, T1=T2=12: 1.9 % clean accuracy). "
            "Give the ramp some room, e.g. schedule_start=0.24 and schedule_end=0.74.",
            UserWarning,
            stacklevel=3,
        )
