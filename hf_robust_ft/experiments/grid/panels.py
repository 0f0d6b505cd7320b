"""What the pictures of a grid have in common: panels, lines, axes, legends."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hf_robust_ft.experiments.grid.comparison import Configuration, ScoreTable, configuration_of, setting_rank
from hf_robust_ft.experiments.grid.results import MeasuredCell
from hf_robust_ft.reporting.plots import _save, open_frame, plt

PAPERS, NEVER, FRONT = LAST = ("the paper's", "never adapted", "best for the cost")  # at the end of legends


def make_panels(results: Sequence[MeasuredCell], with_strip: bool = False) -> tuple[plt.Figure, list]:
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


def line_and_band(axes, x: Sequence[float], y: np.ndarray, style: Mapping, label: str, **how) -> None:
    """The mean over seeds (rows of `y`) and their range."""
    axes.plot(x, y.mean(0), color=style["color"], ls=style["linestyle"], label=label, clip_on=False, **how)
    if len(y) > 1:
        axes.fill_between(x, y.min(0), y.max(0), color=style["color"], alpha=0.15, linewidth=0)


def common_epochs(seeds: Sequence[MeasuredCell], name: str) -> tuple[list[float], np.ndarray]:
    """The epochs that all seeds have, and their values there, (seeds, epochs)."""
    by_epoch = [dict(zip(each.validation["epochs"], each.validation.get(name, ()), strict=False)) for each in seeds]
    epochs = sorted(set.intersection(*map(set, by_epoch)))
    return epochs, np.array([[values[epoch] for epoch in epochs] for values in by_epoch])


def budget_of(results: Sequence[MeasuredCell]) -> str:
    return f"{results[0].norm} {configuration_of(results[0]).eps}"


def name_axes(axes, xlabel: str, ylabel: str, grid: str = "both") -> None:
    """Name the axes: x where its numbers are, y in the first column."""
    if axes.xaxis.get_tick_params()["labelbottom"]:
        axes.set_xlabel(xlabel)
    if axes.get_subplotspec().is_first_col():
        axes.set_ylabel(ylabel)
    if grid:
        open_frame(axes)
    if grid == "y":
        axes.grid(visible=False, axis="x")


def finish(figure: plt.Figure, title: str, path: str | Path) -> None:
    """A title, and one legend for all panels: the settings first."""
    entries: dict[str, object] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    names = sorted(entries, key=lambda label: (label in LAST, setting_rank(label)))
    figure.suptitle(title)
    figure.legend([entries[name] for name in names], names, frameon=False, loc="outside right center")
    _save(figure, path)
