"""How much of the budget to use when: `alpha`, the share of eps_g, over the course of training.

The budget at progress t is eps(t) = alpha(t) * eps_g (Epsilon-Scheduling, arXiv 2509.23325). Progress is the share
of training done, in [0, 1]; the paper's T1 = 12 and T2 = 37 of 50 epochs are `start=0.24` and `end=0.74`.

Ramps and samplings are pure functions, with no state. Adaptive and per-sample schedules keep what they remember in an
explicit `memory` of JSON values, which is handed in.
"""

from hf_robust_ft.schedules.adaptive import AutoPlateau, LossDriven
from hf_robust_ft.schedules.arguments import parse_schedule_args
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
from hf_robust_ft.schedules.table import SCHEDULES, Schedule, build_schedule

__all__ = [
    "SCHEDULES",
    "AutoPlateau",
    "LossDriven",
    "PerSample",
    "Schedule",
    "beta",
    "build_schedule",
    "constant",
    "cosine",
    "exponential",
    "hinge",
    "linear_warmup",
    "none",
    "parse_schedule_args",
    "piecewise_linear",
    "smoothed_hinge",
    "uniform",
]
