"""What robustness costs: the expected score over the passes of training, a point a setting, the best ones joined."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hf_robust_ft.experiments.grid.panels import FRONT, budget_of, finish, make_panels, name_axes
from hf_robust_ft.experiments.grid.plot_styles import Styles
from hf_robust_ft.experiments.grid.results import MeasuredCell
from hf_robust_ft.experiments.grid.training_cost import in_forwards, pareto_front


def plot_frontier(results: Sequence[MeasuredCell], path: str | Path, *, styles: Styles) -> None:
    """Means over seeds with their standard deviation; a grey line joins the settings that are best for their cost.

    A dot without a bar is of one seed. Robustness is the converged one, where it was measured.
    """
    figure, panels = make_panels(results)
    for _, axes, by_setting in panels:
        points = {}
        for setting, seeds in by_setting.items():
            costs = [in_forwards(each.passes) / 1000 for each in seeds]
            robustness = [100 * each.scores.expected for each in seeds]
            points[setting] = np.mean(costs), np.mean(robustness)
            axes.errorbar(
                *points[setting],
                yerr=np.std(robustness, ddof=1) if len(seeds) > 1 else None,
                color=styles[setting]["color"],
                marker=styles[setting]["marker"],
                linestyle="",
                capsize=3,
                label=setting,
                zorder=3,
            )
        front = [points[setting] for setting in pareto_front(points)]
        axes.plot(*zip(*front, strict=True), color="0.6", linewidth=1, label=FRONT, zorder=2)
        axes.set(ylim=(0, 100), xlim=(0, 1.05 * max(cost for cost, _ in points.values())))
        name_axes(axes, "cost of training (thousand forward passes)", f"expected {results[0].measure.name} (%)")
    finish(figure, f"Robustness for its cost, trained for {budget_of(results)}", path)
