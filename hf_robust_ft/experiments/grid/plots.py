"""A grid in pictures: score over eps, the three figures, training, the (T1, T2) ablation, delay, score for its cost.

One picture an eps, a panel for each backbone (rows) and dataset (columns); a setting has the same colour in all.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator

from hf_robust_ft.attacks.threat_model import parse_eps
from hf_robust_ft.experiments.grid.comparison import (
    ScoreTable,
    configuration_of,
)
from hf_robust_ft.experiments.grid.frontier import plot_frontier
from hf_robust_ft.experiments.grid.markdown import SHORT
from hf_robust_ft.experiments.grid.panels import (
    NEVER,
    PAPERS,
    budget_of,
    common_epochs,
    finish,
    line_and_band,
    make_panels,
    name_axes,
)
from hf_robust_ft.experiments.grid.paper_comparison import is_measured_as_paper, paper_figure
from hf_robust_ft.experiments.grid.plot_styles import Styles, styles_of
from hf_robust_ft.experiments.grid.results import MeasuredCell
from hf_robust_ft.experiments.grid.settings import schedule_epochs
from hf_robust_ft.experiments.paper.numbers import Scores
from hf_robust_ft.provenance.validation_curves import ValidationCurve
from hf_robust_ft.reporting.diagnosis_text import threshold_for
from hf_robust_ft.reporting.drawing import drawn
from hf_robust_ft.reporting.measures import ACCURACY, MEASURES
from hf_robust_ft.reporting.plots import _save, eps_unit, plt, strip_of_eps


def plot_grid(results: Sequence[MeasuredCell], folder: str | Path) -> list[Path]:
    """Draw into `folder` every picture that the results allow; returns the paths of those that could be drawn.

    Of a task with several measures each kind of picture is drawn for each, and named after it.
    """
    measures = MEASURES[type(results[0].report)] if results else ()
    return [
        path
        for measure in measures
        for path in _plot_by([replace(each, seen_by=measure) for each in results], Path(folder))
    ]


def _plot_by(results: Sequence[MeasuredCell], folder: Path) -> list[Path]:
    schedules = [each for each in results if not schedule_epochs(each.setting)]
    styles = styles_of(schedules)
    ablation = [each for each in results if schedule_epochs(each.setting)]
    observed = [each for each in schedules if each.validation.get("epochs")]
    measure = results[0].measure
    what = measure.name.lower().replace(" ", "_")
    prefix = "" if measure is ACCURACY else f"{what}_"
    paths = []
    for kind, plot, chosen, how in (
        (f"{what}_by_eps", plot_accuracy_by_eps, schedules, {"styles": styles}),
        (f"{prefix}scores", plot_scores, schedules, {"styles": styles}),
        (f"{prefix}training", plot_training_by_setting, observed, {"styles": styles}),
        # Most pixels are background, which every segmenter finds at once.
        ("delay_and_accuracy", plot_delay_and_accuracy, observed if measure is ACCURACY else [], {"styles": styles}),
        (f"{prefix}start_and_end", plot_start_and_end, ablation, {}),
        (f"{prefix}frontier", plot_frontier, schedules if len(styles) > 1 else [], {"styles": styles}),
    ):
        for eps in sorted({configuration_of(each).eps for each in chosen}, key=parse_eps):
            path = folder / f"{kind}_{eps.replace('/', '_')}.png"
            cells = [each for each in chosen if configuration_of(each).eps == eps]
            if drawn(path.name, partial(plot, cells, path, **how), path):
                paths.append(path)
    return paths


def plot_accuracy_by_eps(results: Sequence[MeasuredCell], path: str | Path, *, styles: Styles) -> None:
    """The score under attack over its budget: the mean over seeds, and a band from the lowest to the highest seed."""
    figure, panels = make_panels(results)
    unit, unit_name = eps_unit(results[0].norm)
    for _, axes, by_setting in panels:
        for setting, seeds in by_setting.items():
            x = [unit * eps for eps in seeds[0].report.epsilons]
            y = 100 * np.array([each.curve for each in seeds])
            line_and_band(axes, x, y, styles[setting], setting, marker="o", markersize=3)
        axes.set(ylim=(0, 100), xlim=(0, unit * results[0].report.epsilons[-1]))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=results[0].norm == "Linf"))
        name_axes(axes, f"{results[0].norm} budget eps{unit_name}", f"{results[0].measure.name} (%)")
    finish(figure, f"Trained for {budget_of(results)}, attacked up to it", path)


def plot_scores(results: Sequence[MeasuredCell], path: str | Path, *, styles: Styles) -> None:
    """Clean, adversarial and expected score as bars, with the standard deviation over seeds.

    A black line is what the paper prints for that backbone, dataset and setting, where it was measured as ours was.
    """
    figure, panels = make_panels(results)
    table = ScoreTable.from_results(results)
    width = 0.84 / len(styles)
    for configuration, axes, by_setting in panels:
        comparable = is_measured_as_paper(results[0]) and not results[0].report.convergence
        for place, (setting, style) in enumerate(styles.items()):
            if setting not in by_setting:
                continue
            x = np.arange(3) + (place - (len(styles) - 1) / 2) * width
            mean, sd = table.mean(configuration, setting), table.deviation(configuration, setting)
            axes.bar(
                x,
                100 * np.array(mean),
                width,
                yerr=None if sd is None else 100 * np.array(sd),
                color=style["color"],
                hatch=style["hatch"],
                edgecolor="white",
                linewidth=0.5,
                error_kw={"elinewidth": 0.8, "ecolor": "0.25"},
                label=setting,
            )
            paper = paper_figure(results[0].norm, configuration, setting) if comparable else None
            if paper:
                axes.hlines(100 * np.array(paper), x - width / 2, x + width / 2, color="black", label=PAPERS)
        axes.set_xticks(range(3), SHORT.values())
        axes.set_ylim(0, 100)
        axes.set_axisbelow(True)
        name_axes(axes, "", f"{results[0].measure.name} (%)", grid="y")
    finish(figure, f"Scores at {budget_of(results)}", path)


def plot_training_by_setting(results: Sequence[MeasuredCell], path: str | Path, *, styles: Styles) -> None:
    """Clean validation score over the budget eps of training, by epoch; means over seeds with their range."""
    figure, panels = make_panels(results, with_strip=True)
    measure = results[0].measure
    unit, unit_name = eps_unit(results[0].norm)
    for _, (top, bottom), by_setting in panels:
        for setting, seeds in by_setting.items():
            epochs, accuracies = common_epochs(seeds, measure.curve)
            line_and_band(top, epochs, 100 * accuracies, styles[setting], setting)
            epochs, budget = common_epochs(seeds, "eps")
            if len(epochs):
                # What is told at the end of an epoch was in force during it.
                x, y = [0, *epochs], unit * budget.mean(0)
                bottom.step(x, [y[0], *y], where="pre", color=styles[setting]["color"], ls=styles[setting]["linestyle"])
        top.set_ylim(0, 100)
        strip_of_eps(bottom, results[0].norm)
        bottom.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        name_axes(top, "", f"{measure.name} (%)")
        name_axes(bottom, "epoch", f"eps{unit_name}")
    finish(figure, f"Validation {measure.name} in training for {budget_of(results)}", path)


def plot_start_and_end(results: Sequence[MeasuredCell], path: str | Path) -> None:
    """The ablation of T1 and T2: a map for each score and configuration, coloured from its lowest to its highest."""
    table = ScoreTable.from_results(results)
    rows = table.configurations
    figure, grid = plt.subplots(len(rows), 3, figsize=(10, 0.6 + 2.9 * len(rows)), layout="constrained", squeeze=False)
    for configuration, line in zip(rows, grid, strict=True):
        epochs = {schedule_epochs(each): each for each in table.settings if table.by_seed(configuration, each)}
        starts, ends = (sorted({pair[side] for pair in epochs}) for side in (0, 1))
        for score, axes in zip(Scores._fields, line, strict=True):
            shown = np.full((len(starts), len(ends)), np.nan)
            for (start, end), setting in epochs.items():
                mean = table.mean(configuration, setting)
                shown[starts.index(start), ends.index(end)] = 100 * getattr(mean, score)
            axes.imshow(shown, origin="lower", cmap="viridis", aspect="auto")
            middle = (np.nanmin(shown) + np.nanmax(shown)) / 2
            for (row, column), value in np.ndenumerate(shown):
                if not np.isnan(value):
                    colour = "white" if value <= middle else "black"
                    axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=colour)
            axes.set_xticks(range(len(ends)), [f"{end:g}" for end in ends])
            axes.set_yticks(range(len(starts)), [f"{start:g}" for start in starts])
            axes.set_title(f"{configuration.model}, {configuration.dataset}: {SHORT[score]} (%)", fontsize="medium")
            name_axes(axes, "T2", "T1", grid="")
    figure.suptitle(f"T1 and T2 in epochs of 50, {budget_of(results)}")
    _save(figure, path)


def plot_delay_and_accuracy(results: Sequence[MeasuredCell], path: str | Path, *, styles: Styles) -> None:
    """Clean accuracy on held-out images against adaptation delay, a dot a run; a cross never adapted.

    A run has adapted when its validation accuracy exceeds the paper's 5 %, or more where guessing exceeds that.
    """
    figure, panels = make_panels(results)
    for _, axes, by_setting in panels:
        threshold = threshold_for(len(next(iter(by_setting.values()))[0].report.per_class))
        for setting, seeds in by_setting.items():
            look = {"color": styles[setting]["color"], "linestyle": "", "alpha": 0.8}
            axes.plot([], [], marker=styles[setting]["marker"], label=setting, **look)
            for each in seeds:
                delay, length = _delay(each, threshold), each.validation["epochs"][-1]
                marker = "x" if delay is None else styles[setting]["marker"]
                axes.plot(
                    [length if delay is None else delay],
                    [100 * each.report.clean_accuracy],
                    marker,
                    clip_on=False,
                    **look,
                )
                if delay is None:
                    axes.plot([], [], "x", color="grey", label=NEVER)
        axes.set(ylim=(0, 100), xlim=(0, max(each.validation["epochs"][-1] for each in results)))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        name_axes(axes, f"epochs to exceed {threshold:.0%}", "clean accuracy (%)")
    finish(figure, f"Adaptation delay, trained for {budget_of(results)}", path)


def _delay(result: MeasuredCell, threshold: float) -> float | None:
    epochs, accuracies = (tuple(result.validation[name]) for name in ("epochs", "accuracies"))
    return ValidationCurve(result.setting, 0.0, epochs, accuracies, epochs[-1]).delay(threshold)
