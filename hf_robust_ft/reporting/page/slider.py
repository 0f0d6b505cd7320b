"""What the page's slider over eps tells at each of its ticks."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hf_robust_ft.attacks.threat_model import format_eps, readable_eps
from hf_robust_ft.evaluation.report import RobustnessReport
from hf_robust_ft.metrics.robustness.curve import expected_robustness, survival_expectation
from hf_robust_ft.metrics.robustness.threat_distributions import Uniform
from hf_robust_ft.reporting.comparability import Setting

LEAST_TICKS = 100
NOTHING = "\N{EN DASH}"  # to tell


def slider_epsilons(reports: Sequence[RobustnessReport]) -> list[float]:
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


def robustness_up_to(report: RobustnessReport, eps: float) -> float | None:
    """Mean accuracy over [0, eps], at 0 the clean accuracy; None beyond the largest eps measured."""
    if eps > report.epsilons[-1]:
        return None
    if eps == 0:
        return report.accuracies_at([0])[0]
    if report.protocol == "exact":
        return survival_expectation(
            Uniform(eps), [np.inf if each is None else each for each in report.smallest_epsilons]
        )
    grid = [*(point for point in report.epsilons if point < eps), eps]
    return expected_robustness(report.accuracies_at(grid), grid)


def slider_ticks(reports: Sequence[RobustnessReport], unit: float) -> list[dict[str, Any]]:
    """Each tick's label, its place `x` on the chart in `unit`, and a row of texts a report for the table below.

    A row: accuracy at eps, expected robustness over [0, eps], then the difference to each report as a baseline.

    Args:
        reports: of one norm.
        unit: of the chart's axis, in pixel units of [0, 1].
    """
    is_linf = reports[0].threat_model["norm"] == "Linf"
    settings = [replace(Setting.of(report), eps="", grid="") for report in reports]
    others = [[", ".join(mine.differences(theirs)) for theirs in settings] for mine in settings]
    ticks = []
    for eps in slider_epsilons(reports):
        means = [robustness_up_to(report, eps) for report in reports]
        grids = [() if each.protocol == "exact" else tuple(p for p in each.epsilons if p <= eps) for each in reports]
        rows = []
        for row, report in enumerate(reports):
            accuracy, expected = (
                NOTHING,
                f"not measured beyond {report.threat_model['norm']} {format_eps(report.epsilons[-1])}",
            )
            if means[row] is not None:
                accuracy, expected = f"{100 * report.accuracies_at([eps])[0]:.1f} %", f"{100 * means[row]:.2f} %"
            texts = [accuracy, expected]
            for column, mean in enumerate(means):
                if column == row or means[row] is None or mean is None:
                    texts.append(NOTHING)
                elif others[row][column] or grids[row] != grids[column]:
                    texts.append(f"not comparable: other {others[row][column] or 'grid of eps'}")
                else:
                    texts.append(f"{100 * (means[row] - mean):+.2f} points".replace("-", "\N{MINUS SIGN}"))
            rows.append(texts)
        ticks.append({"label": readable_eps(eps) if is_linf else format_eps(eps), "x": eps / unit, "rows": rows})
    return ticks
