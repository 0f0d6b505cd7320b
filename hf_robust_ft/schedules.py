"""How much of the budget to use when: `alpha`, the share of eps_g, as a pure function of training progress.

The budget at progress t is eps(t) = alpha(t) * eps_g (Epsilon-Scheduling, arXiv 2509.23325). Progress is the share
of training done, in [0, 1]; the paper's T1 = 12 and T2 = 37 of 50 epochs are `start=0.24` and `end=0.74`.
"""

import inspect
import warnings
from collections.abc import Callable


def hinge(progress: float, start: float = 0.24, end: float = 0.74) -> float:
    """Nothing before `start` (T1), a linear ramp up to `end` (T2), then the whole budget.

    `start=end=0` is `constant` (RFT-fix), `start=0` is `linear_warmup`.

    >>> [hinge(epoch / 50) for epoch in (11, 12, 24.5, 37)]
    [0.0, 0.0, 0.5, 1.0]
    """
    if progress >= end:
        return 1.0
    if progress <= start:
        return 0.0
    return (progress - start) / (end - start)


def linear_warmup(progress: float, end: float = 0.74) -> float:
    """A linear ramp from 0 at the first step to the whole budget at `end`.

    >>> [linear_warmup(t, end=0.5) for t in (0.0, 0.25, 0.5, 1.0)]
    [0.0, 0.5, 1.0, 1.0]
    """
    return hinge(progress, start=0.0, end=end)


def constant(progress: float) -> float:
    """The whole budget from the first step: standard robust fine-tuning, the paper's *fix*."""
    return 1.0


SCHEDULES: dict[str, Callable[..., float]] = {"constant": constant, "linear_warmup": linear_warmup, "hinge": hinge}


def build_schedule(name: str, start: float, end: float) -> Callable[[float], float]:
    """Bind a schedule's parameters, leaving a function of progress alone.

    Args:
        name: a key of `SCHEDULES`; it is given those of `start` and `end` that its signature names.
        start: share of training before which eps is 0 (T1).
        end: share of training from which eps is eps_g (T2).

    Raises:
        ValueError: unknown name, or not 0 <= start <= end <= 1 for the parameters the schedule uses.
    """
    if name not in SCHEDULES:
        raise ValueError(f"Unknown eps schedule {name!r}. Valid schedules: {', '.join(SCHEDULES)}.")
    schedule = SCHEDULES[name]
    used = {
        key: value for key, value in (("start", start), ("end", end)) if key in inspect.signature(schedule).parameters
    }
    for key, value in used.items():
        if not 0 <= value <= 1:
            raise ValueError(
                f"schedule_{key}={value} must lie in [0, 1]: it is a share of training (epoch 12 of 50 is 0.24)."
            )
    if "start" in used and start > end:
        raise ValueError(f"schedule_start={start} is after schedule_end={end}: the ramp would end before it begins.")
    if "start" in used and start == end > 0:
        warnings.warn(
            f"schedule_start and schedule_end are both {start}: eps jumps from 0 to its full value in one step, "
            "which collapsed training in the paper (Table 7, T1=T2=12: 1.9 % clean accuracy). "
            "Give the ramp some room, e.g. schedule_start=0.24 and schedule_end=0.74.",
            UserWarning,
            stacklevel=2,
        )
    return lambda progress: schedule(progress, **used)
