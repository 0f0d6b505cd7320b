"""Suboptimal transfer in numbers: adaptation delay, severity, their correlation, and T1 and T2 from them.

Robust fine-tuning at a fixed eps (*fix*) learns the task late and ends low; how late foretells how low, which is what
an eps schedule mends (arXiv 2509.23325, Sections 3 and 4, Figures 1, 3, 8, 9).
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_robust_ft.provenance.validation_curves import PAPER_THRESHOLD, ValidationCurve, check_comparable

FEWEST_POINTS = 3
SHORTEST_RAMP = 0.1  # share of training: T1 = T2 collapsed in the paper's Table 7


@dataclass(frozen=True)
class Correlation:
    """Pearson's correlation with a percentile bootstrap interval over the runs.

    Args:
        value: in [-1, 1].
        interval: its ends, at `level`.
        level: share of the resamples inside.
        num_points: runs.
    """

    value: float
    interval: tuple[float, float]
    level: float
    num_points: int


@dataclass(frozen=True)
class ScheduleEpochs:
    """T1 and T2 as the paper chose them, in whole epochs.

    Args:
        start: T1, until which eps is 0.
        end: T2, from which eps is eps_g.
        num_epochs: of the runs they were found in.
        reached: mean epoch of the standard runs' 90 %, before rounding.
        mean_delay: mean adaptation delay, before rounding.
        note: what was changed to leave room for a ramp, or what the mean delay hides; empty if nothing.
    """

    start: int
    end: int
    num_epochs: float
    reached: float
    mean_delay: float
    note: str = ""

    @property
    def shares(self) -> tuple[float, float]:
        """`schedule_start` and `schedule_end`."""
        return self.start / self.num_epochs, self.end / self.num_epochs


@dataclass(frozen=True)
class RunDiagnosis:
    """One run of a diagnosis.

    Args:
        delay: first epoch above the threshold; None for never.
        severity: drop of the final accuracy against the standard runs' mean; negative for a gain.
    """

    name: str
    eps: float
    delay: float | None
    final_accuracy: float
    severity: float


@dataclass(frozen=True)
class Diagnosis:
    """What standard and fix runs over several eps_g tell.

    Args:
        threshold: accuracy above which a run has adapted.
        num_epochs: length of each run. A run that never adapts counts with it as its delay, a lower bound.
        runs: by eps.
        correlation: of delay and severity (its negative is that of delay and final accuracy, the paper's Figure 9);
            None for fewer than 3 runs, and where one of them is the same in all.
        schedule: T1 and T2; None where they cannot be told, for the reason in `no_schedule`.
        facts: what the runs have in common.
    """

    threshold: float
    num_epochs: float
    runs: list[RunDiagnosis]
    correlation: Correlation | None
    schedule: ScheduleEpochs | None
    no_schedule: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def never(self) -> list[RunDiagnosis]:
        """Runs that did not adapt."""
        return [run for run in self.runs if run.delay is None]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)


def diagnose(curves: Sequence[ValidationCurve], threshold: float = PAPER_THRESHOLD) -> Diagnosis:
    """Delay and severity of every run, their correlation over all of them (eps 0 too, as in the paper), T1 and T2.

    Args:
        curves: complete runs of one task and one length, at least one of them standard and one fix.
        threshold: see `ValidationCurve.delay`.

    Raises:
        ValueError: no standard or no fix run, runs that were stopped early, or runs of different length or task.
    """
    check_comparable(curves, threshold)
    for curve in curves:
        _refuse_incomplete(curve)
    standard = float(np.mean([curve.final_accuracy for curve in curves if curve.eps == 0]))
    runs = [
        RunDiagnosis(
            curve.name, curve.eps, curve.delay(threshold), curve.final_accuracy, standard - curve.final_accuracy
        )
        for curve in sorted(curves, key=lambda curve: (curve.eps, curve.name))
    ]
    length = curves[0].num_epochs
    try:
        schedule, reason = schedule_epochs(curves, threshold), ""
    except ValueError as error:
        schedule, reason = None, str(error)
    return Diagnosis(
        threshold=threshold,
        num_epochs=length,
        runs=runs,
        correlation=correlate([counted(run.delay, length) for run in runs], [run.severity for run in runs])
        if len(runs) >= FEWEST_POINTS
        else None,
        schedule=schedule,
        no_schedule=reason,
        facts=_common(curves),
    )


def counted(delay: float | None, num_epochs: float) -> float:
    """A delay as a number: "never" counts as the whole run, as in the paper's Figure 8."""
    return num_epochs if delay is None else delay


def schedule_epochs(curves: Sequence[ValidationCurve], threshold: float = PAPER_THRESHOLD) -> ScheduleEpochs:
    """T1: epoch of 90 % of the final accuracy of standard runs; T2: mean adaptation delay over all runs.

    Both are means over the runs, rounded to whole epochs. Standard runs count in T2 (with eps 0 the delays of
    SWIN-Aircraft in the paper's Figure 8 average to its T2 = 37, without to 41), and a run that never adapts counts
    with its whole length. Fix runs may have been stopped once they had adapted.

    Raises:
        ValueError: standard fine-tuning does not adapt, no fix run does, the runs are too short to tell T1, or
            what `check_comparable` refuses.
    """
    check_comparable(curves, threshold)
    standard = [curve for curve in curves if curve.eps == 0]
    length = curves[0].num_epochs
    for curve in standard:
        _refuse_incomplete(curve)
        if curve.delay(threshold) is None:
            raise ValueError(
                f"{curve.name} never exceeds the threshold of {threshold:.1%} in {length:g} epochs: standard "
                "fine-tuning itself does not learn the task. Look at the learning rate, or lower the threshold."
            )
    delays = {curve.name: curve.delay(threshold) for curve in curves}
    never = [curve.name for curve in curves if delays[curve.name] is None]
    for curve in curves:
        if curve.name in never:
            _refuse_incomplete(curve)
    if len(never) == len(curves) - len(standard):
        raise ValueError(
            f"No fix run exceeds the threshold of {threshold:.1%} in {length:g} epochs, so T2, their mean delay, is "
            "not known. Add smaller eps, or train longer."
        )
    reached = float(np.mean([curve.epoch_of_share() for curve in standard]))
    mean_delay = float(np.mean([counted(delays[curve.name], length) for curve in curves]))
    start, end = _rounded(reached), _rounded(mean_delay)
    earliest = start + max(1, math.ceil(SHORTEST_RAMP * length))
    notes = []
    if never:
        notes.append(f"{len(never)} of {len(curves)} runs never adapt and count with {length:g} epochs")
    if end < earliest:
        easy = " (fix adapts so early that it may need no schedule)" if end <= start else ""
        notes.append(
            f"the mean delay of {mean_delay:.1f} epochs is moved to {earliest}, to leave room for a ramp{easy}"
        )
        end = earliest
        if end >= length:  # a ramp that ends with training never gets to eps_g, and one of an epoch never starts
            raise ValueError(
                f"Standard fine-tuning reaches 90 % of its final accuracy only after {reached:g} of {length:g} epochs, "
                "which leaves no room for a ramp. Train longer."
            )
    return ScheduleEpochs(start, end, length, reached, mean_delay, "; ".join(notes))


def correlate(
    x: Sequence[float], y: Sequence[float], *, resamples: int = 10_000, level: float = 0.95, seed: int = 0
) -> Correlation | None:
    """Pearson's correlation of paired values, with a percentile bootstrap interval; None where x or y is constant.

    Resamples in which x or y is constant have no correlation and are left out.

    Raises:
        ValueError: fewer than 3 pairs, or different numbers of x and y.

    >>> found = correlate([2, 24, 39, 50], [0.0, 0.3, 0.5, 0.9])
    >>> round(found.value, 3), found.num_points
    (0.97, 4)
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"A correlation needs as many x as y, got shapes {x.shape} and {y.shape}.")
    if len(x) < FEWEST_POINTS:
        raise ValueError(f"A correlation needs at least {FEWEST_POINTS} points, got {len(x)}.")
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    drawn = np.random.default_rng(seed).integers(0, len(x), (resamples, len(x)))
    drawn = drawn[(np.ptp(x[drawn], axis=1) > 0) & (np.ptp(y[drawn], axis=1) > 0)]
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(_pearson(x[drawn], y[drawn]), [tail, 100 - tail])
    return Correlation(float(_pearson(x, y)), (float(low), float(high)), level, len(x))


def _refuse_incomplete(curve: ValidationCurve) -> None:
    if not curve.is_complete:
        raise ValueError(
            f"{curve.name} was evaluated up to epoch {curve.epochs[-1]:g} of {curve.num_epochs:g}: its final accuracy "
            "is not known. Finish it, or leave it out."
        )


def _common(curves: Sequence[ValidationCurve]) -> dict[str, Any]:
    """Facts that are known of any run: where two know one, they agree."""
    return {key: value for curve in reversed(curves) for key, value in curve.facts.items()}


def _rounded(epochs: float) -> int:
    return math.floor(epochs + 0.5)


def _pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    return np.clip((x * y).sum(-1) / np.sqrt((x**2).sum(-1) * (y**2).sum(-1)), -1, 1)
