"""What the page's slider over eps tells at each of its ticks."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hf_robust_ft.attacks.threat_model import format_eps, readable_eps
from hf_robust_ft.metrics.robustness.curve import expected_robustness, survival_expectation
from hf_robust_ft.metrics.robustness.threat_distributions import Uniform
from hf_robust_ft.reporting.comparability import Setting
from hf_robust_ft.reporting.measures import ACCURACY, Measure
from hf_robust_ft.reporting.report_files import Report

LEAST_TICKS = 100
NOTHING = "\N{EN DASH}"  # to tell


def slider_epsilons(reports: Sequence[Report]) -> list[float]:
    """Evenly spaced from 0 to the largest eps, in parts of 1/255 where that is a number of them under Linf.

    Points of a grid are met exactly, not to a rounding error.
    """
    largest, norm = max(report.epsilons[-1] for report in reports), reports[0].threat_model["norm"]
    whole = round(255 * largest)
    count = 2 * LEAST_TICKS
    if norm == "Linf" and whole > 0 and abs(255 * largest - whole) < 1e-6:
        count = whole * next(parts for parts in (1, 2, 5, 10, 20, 50, 100) if parts * whole >= LEAST_TICKS)
    ticks, points = np.linspace(0, largest, count + 1), np.array([eps for each in reports for eps in each.epsilons])
    nearest = points[np.abs(points - ticks[:, None]).argmin(1)]
    return np.where(np.abs(nearest - ticks) < 1e-9, nearest, ticks).tolist()


def robustness_up_to(report: Report, eps: float, measure: Measure = ACCURACY) -> float | None:
    """The mean over [0, eps], at 0 the clean figure; None beyond the largest eps measured."""
    if eps > report.epsilons[-1]:
        return None
    if eps == 0:
        return measure.at(report, [0])[0]
    if report.protocol == "exact":
        return survival_expectation(
            Uniform(eps), [np.inf if each is None else each for each in report.smallest_epsilons]
        )
    grid = [*(point for point in report.epsilons if point < eps), eps]
    return expected_robustness(measure.at(report, grid), grid)


def slider_ticks(reports: Sequence[Report], unit: float, measure: Measure = ACCURACY) -> list[dict[str, Any]]:
    """Each tick's label, its place `x` on the chart, and a row a report: the measure at eps, its mean over [0, eps],
    and the latter as a number, None beyond what was measured.

    Args:
        reports: of one norm.
        unit: of the chart's axis, in pixel units of [0, 1].
    """
    norm = reports[0].threat_model["norm"]
    ticks = []
    for eps in slider_epsilons(reports):
        rows: list[tuple[str, str, float | None]] = []
        for report in reports:
            mean = robustness_up_to(report, eps, measure)
            if mean is None:
                rows.append((NOTHING, f"not measured beyond {norm} {format_eps(report.epsilons[-1])}", None))
            else:
                rows.append((f"{100 * measure.at(report, [eps])[0]:.1f} %", f"{100 * mean:.2f} %", mean))
        label = readable_eps(eps) if norm == "Linf" else format_eps(eps)
        ticks.append({"label": label, "x": eps / unit, "rows": rows})
    return ticks


def what_keeps_apart(
    mine: Report, theirs: Report, unit: float, setting_of: Callable[[Any], Setting] = Setting.of
) -> tuple[str, float] | None:
    """Why no difference is told, and from which `x` on; None if it may be told wherever both were measured."""
    settings = [replace(setting_of(report), eps="", grid="") for report in (mine, theirs)]
    if differences := settings[0].differences(settings[1]):
        return ", ".join(differences), 0.0
    grids = {*mine.epsilons} ^ {*theirs.epsilons}
    return ("grid of eps", min(grids) / unit) if grids and mine.protocol != "exact" else None
