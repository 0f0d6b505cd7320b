"""A grid in pictures: score over eps, the three figures, training, the (T1, T2) ablation, and delay against accuracy.

One picture an eps, a panel for each backbone (rows) and dataset (columns); a setting has the same colour in all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator

from hf_robust_ft.attacks.threat_model import parse_eps
from hf_robust_ft.experiments.grid.comparison import (
    Configuration,
    ScoreTable,
    configuration_of,
    setting_rank,
)
from hf_robust_ft.experiments.grid.markdown import SHORT
from hf_robust_ft.experiments.grid.measures import ACCURACY, MEASURES
from hf_robust_ft.experiments.grid.paper_comparison import is_measured_as_paper, paper_figure
from hf_robust_ft.experiments.grid.plot_styles import Styles, styles_of
from hf_robust_ft.experiments.grid.results import MeasuredCell
from hf_robust_ft.experiments.grid.settings import schedule_epochs
from hf_robust_ft.experiments.paper.numbers import Scores
from hf_robust_ft.provenance.validation_curves import ValidationCurve
from hf_robust_ft.reporting.diagnosis_text import threshold_for
from hf_robust_ft.reporting.drawing import drawn
from hf_robust_ft.reporting.plots import _save, open_frame, plt, strip_of_eps

_PAPERS, _NEVER = "the paper's", "never adapted"  # entries of legends


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
    ):
        for eps in sorted({configuration_of(each).eps for each in chosen}, key=parse_eps):
            path = folder / f"{kind}_{eps.replace('/', '_')}.png"
            cells = [each for each in chosen if configuration_of(each).eps == eps]
            if drawn(path.name, partial(plot, cells, path, **how), path):
                paths.append(path)
    return paths


def plot_accuracy_by_eps(results: Sequence[MeasuredCell], path: str | Path, *, styles: Styles) -> None:
    """The score under attack over its budget: the mean over seeds, and a band from the lowest to the highest seed."""
    figure, panels = _panels(results)
    unit, unit_name = _unit(results[0])
    for _, axes, by_setting in panels:
        for setting, seeds in by_setting.items():
            x = [unit * eps for eps in seeds[0].report.epsilons]
            y = 100 * np.array([each.curve for each in seeds])
            _line_and_band(axes, x, y, styles[setting], setting, marker="o", markersize=3)
        axes.set(ylim=(0, 100), xlim=(0, unit * results[0].report.epsilons[-1]))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=results[0].norm == "Linf"))
        _label(axes, f"{results[0].norm} budget eps{unit_name}", f"{results[0].measure.name} (%)")
    _finish(figure, f"Trained for {_budget(results)}, attacked up to it", path)


def plot_scores(results: Sequence[MeasuredCell], path: str | Path, *, styles: Styles) -> None:
    """Clean, adversarial and expected score as bars, with the standard deviation over seeds.

    A black line is what the paper prints for that backbone, dataset and setting, where it was measured as ours was.
    """
    figure, panels = _panels(results)
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
                axes.hlines(100 * np.array(paper), x - width / 2, x + width / 2, color="black", label=_PAPERS)
        axes.set_xticks(range(3), SHORT.values())
        axes.set_ylim(0, 100)
        axes.set_axisbelow(True)
        _label(axes, "", f"{results[0].measure.name} (%)", grid="y")
    _finish(figure, f"Scores at {_budget(results)}", path)


def plot_training_by_setting(results: Sequence[MeasuredCell], path: str | Path, *, styles: Styles) -> None:
    """Clean validation score over the budget eps of training, by epoch; means over seeds with their range."""
    figure, panels = _panels(results, with_strip=True)
    measure = results[0].measure
    unit, unit_name = _unit(results[0])
    for _, (top, bottom), by_setting in panels:
        for setting, seeds in by_setting.items():
            epochs, accuracies = _common_epochs(seeds, measure.curve)
            _line_and_band(top, epochs, 100 * accuracies, styles[setting], setting)
            epochs, budget = _common_epochs(seeds, "eps")
            if len(epochs):
                # What is told at the end of an epoch was in force during it.
                x, y = [0, *epochs], unit * budget.mean(0)
                bottom.step(x, [y[0], *y], where="pre", color=styles[setting]["color"], ls=styles[setting]["linestyle"])
        top.set_ylim(0, 100)
        strip_of_eps(bottom, results[0].norm)
        bottom.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        _label(top, "", f"{measure.name} (%)")
        _label(bottom, "epoch", f"eps{unit_name}")
    _finish(figure, f"Validation {measure.name} in training for {_budget(results)}", path)


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
            _label(axes, "T2", "T1", grid="")
    figure.suptitle(f"T1 and T2 in epochs of 50, {_budget(results)}")
    _save(figure, path)


def plot_delay_and_accuracy(results: Sequence[MeasuredCell], path: str | Path, *, styles: Styles) -> None:
    """Clean accuracy on held-out images against adaptation delay, a dot a run; a cross never adapted.

    A run has adapted when its validation accuracy exceeds the paper's 5 %, or more where guessing exceeds that.
    """
    figure, panels = _panels(results)
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
                    axes.plot([], [], "x", color="grey", label=_NEVER)
        axes.set(ylim=(0, 100), xlim=(0, max(each.validation["epochs"][-1] for each in results)))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        _label(axes, f"epochs to exceed {threshold:.0%}", "clean accuracy (%)")
    _finish(figure, f"Adaptation delay, trained for {_budget(results)}", path)


def _delay(result: MeasuredCell, threshold: float) -> float | None:
    epochs, accuracies = (tuple(result.validation[name]) for name in ("epochs", "accuracies"))
    return ValidationCurve(result.setting, 0.0, epochs, accuracies, epochs[-1]).delay(threshold)


def _panels(results: Sequence[MeasuredCell], with_strip: bool = False) -> tuple[plt.Figure, list]:
    """A figure, and (configuration, axes, {setting: its seeds}) for each panel.

    Args:
        with_strip: give each panel a second, lower axes under its own; axes are then a pair.
    """
    table = ScoreTable.from_results(results)
    models = list(dict.fromkeys(each.model for each in table.configurations))
    datasets = list(dict.fromkeys(sorted(each.dataset for each in table.configurations)))
    heights = (3, 1.2) if with_strip else (1,)
    single = len(models) * len(datasets) == 1
    wide, high = max(3.1 * len(datasets) + 1.6, 6.4), (3.2 if with_strip else 2.6) * len(models) + 0.7
    size = (7.4, 4.4) if single else (wide, high)
    figure, grid = plt.subplots(
        len(heights) * len(models),
        len(datasets),
        figsize=size,
        layout="constrained",
        squeeze=False,
        sharex=True,
        height_ratios=heights * len(models),
    )
    panels = []
    for row, model in enumerate(models):
        for column, dataset in enumerate(datasets):
            own = grid[len(heights) * row : len(heights) * (row + 1), column]
            configuration = Configuration(model, dataset, configuration_of(results[0]).eps)
            by_setting = {
                setting: [
                    each for each in results if (configuration_of(each), each.setting) == (configuration, setting)
                ]
                for setting in table.settings
                if table.by_seed(configuration, setting)
            }
            if by_setting:
                own[0].set_title(f"{model}, {dataset}", fontsize="medium")
                panels.append((configuration, tuple(own) if with_strip else own[0], by_setting))
            else:
                for axes in own:
                    axes.set_visible(False)
    for column in grid.T:  # the lowest panel that is not empty names the x axis
        [axes for axes in column if axes.get_visible()][-1].tick_params(labelbottom=True)
    return figure, panels


def _line_and_band(axes, x: Sequence[float], y: np.ndarray, style: Mapping, label: str, **how) -> None:
    """The mean over seeds (rows of `y`) and their range."""
    axes.plot(x, y.mean(0), color=style["color"], ls=style["linestyle"], label=label, clip_on=False, **how)
    if len(y) > 1:
        axes.fill_between(x, y.min(0), y.max(0), color=style["color"], alpha=0.15, linewidth=0)


def _common_epochs(seeds: Sequence[MeasuredCell], name: str) -> tuple[list[float], np.ndarray]:
    """The epochs that all seeds have, and their values there, (seeds, epochs)."""
    by_epoch = [dict(zip(each.validation["epochs"], each.validation.get(name, ()), strict=False)) for each in seeds]
    epochs = sorted(set.intersection(*map(set, by_epoch)))
    return epochs, np.array([[values[epoch] for epoch in epochs] for values in by_epoch])


def _unit(result: MeasuredCell) -> tuple[float, str]:
    """What eps is multiplied by on an axis, and what the axis says of it."""
    return (255, " (1/255)") if result.norm == "Linf" else (1, "")


def _budget(results: Sequence[MeasuredCell]) -> str:
    return f"{results[0].norm} {configuration_of(results[0]).eps}"


def _label(axes, xlabel: str, ylabel: str, grid: str = "both") -> None:
    """Name the axes: x where its numbers are, y in the first column."""
    if axes.xaxis.get_tick_params()["labelbottom"]:
        axes.set_xlabel(xlabel)
    if axes.get_subplotspec().is_first_col():
        axes.set_ylabel(ylabel)
    if grid:
        open_frame(axes)
    if grid == "y":
        axes.grid(visible=False, axis="x")


def _finish(figure: plt.Figure, title: str, path: str | Path) -> None:
    """A title, and one legend for all panels: the settings first."""
    entries: dict[str, object] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    names = sorted(entries, key=lambda label: (label in (_PAPERS, _NEVER), setting_rank(label)))
    figure.suptitle(title)
    figure.legend([entries[name] for name in names], names, frameon=False, loc="outside right center")
    _save(figure, path)
