"""Suboptimal transfer in pictures, after Figures 1, 3, 8 and 9 of arXiv 2509.23325, as PNG."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hf_robust_ft.attacks.threat_model import format_eps
from hf_robust_ft.provenance.validation_curves import ValidationCurve
from hf_robust_ft.reporting.diagnosis import Diagnosis, counted
from hf_robust_ft.reporting.plots import _save, eps_unit, open_frame, plt

NAMES = ("validation_curves.png", "standard_and_fix.png", "delay_by_eps.png", "delay_and_accuracy.png")


def plot_diagnosis(diagnosis: Diagnosis, curves: Sequence[ValidationCurve], folder: str | Path) -> list[Path]:
    """Draw all pictures into `folder`; returns their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in NAMES]
    plot_validation_curves(curves, diagnosis.threshold, paths[0])
    # Figure 1's message needs two budgets only: none, and the one that loses most.
    worst = max((run for run in diagnosis.runs if run.eps > 0), key=lambda run: run.severity).eps
    plot_validation_curves([curve for curve in curves if curve.eps in (0, worst)], diagnosis.threshold, paths[1])
    plot_delay_by_eps(diagnosis, paths[2])
    plot_delay_and_accuracy(diagnosis, paths[3])
    return paths


def plot_validation_curves(curves: Sequence[ValidationCurve], threshold: float, path: str | Path) -> None:
    """Validation accuracy over epochs, a colour for each eps_g and a dot where a run adapts (Figures 1 and 3)."""
    figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
    epsilons = sorted({curve.eps for curve in curves})
    colours = dict(zip(epsilons, plt.colormaps["viridis"](np.linspace(0, 0.9, len(epsilons))), strict=True))
    labelled = set()
    for curve in sorted(curves, key=lambda curve: curve.eps):
        kind = "standard" if curve.eps == 0 else f"fix, eps {format_eps(curve.eps)}"
        axes.plot(
            curve.epochs,
            [100 * accuracy for accuracy in curve.accuracies],
            color=colours[curve.eps],
            label=None if kind in labelled else kind,
            clip_on=False,
        )
        labelled.add(kind)
        delay = curve.delay(threshold)
        if delay is not None:
            adapted = 100 * curve.accuracies[curve.epochs.index(delay)]
            axes.plot([delay], [adapted], "o", color=colours[curve.eps], markersize=5, clip_on=False)
    axes.axhline(100 * threshold, color="grey", linewidth=0.8, linestyle="--", zorder=0)
    axes.set(xlabel="epoch", ylabel="validation accuracy (%)", ylim=(0, 100), title="Adaptation to the task")
    open_frame(axes)
    figure.legend(frameon=False, fontsize="small", loc="outside right upper")
    _save(figure, path)


def plot_delay_by_eps(diagnosis: Diagnosis, path: str | Path) -> None:
    """Adaptation delay over eps_g (Figure 8) and drop against standard fine-tuning over eps_g; means over seeds."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    unit, unit_name = eps_unit(diagnosis.facts.get("norm", "Linf"))
    runs, length = diagnosis.runs, diagnosis.num_epochs
    x = [unit * run.eps for run in runs]
    for axes, y in (
        (left, [counted(run.delay, length) for run in runs]),
        (right, [100 * run.severity for run in runs]),
    ):
        means = [
            (each, np.mean([value for at, value in zip(x, y, strict=True) if at == each])) for each in sorted({*x})
        ]
        axes.plot(*zip(*means, strict=True), "-", color="#0072b2", zorder=1)
        adapted = [run.delay is not None for run in runs]
        _dots(axes, x, y, adapted)
        axes.set(xlabel=f"eps_g{unit_name}")
        open_frame(axes)
    left.set(ylabel=f"epochs until accuracy exceeds {100 * diagnosis.threshold:g} %", title="Adaptation delay")
    left.set_ylim(0, 1.05 * length)
    right.set(ylabel="drop against standard (points)", title="Severity")
    if diagnosis.never:
        figure.legend(*left.get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=2)
    _save(figure, path)


def plot_delay_and_accuracy(diagnosis: Diagnosis, path: str | Path) -> None:
    """Final accuracy against delay, one dot a run, with their correlation (Figure 9)."""
    figure, axes = plt.subplots(figsize=(6.2, 4.4), layout="constrained")
    runs, length = diagnosis.runs, diagnosis.num_epochs
    x = [counted(run.delay, length) for run in runs]
    y = [100 * run.final_accuracy for run in runs]
    unit, unit_name = eps_unit(diagnosis.facts.get("norm", "Linf"))
    eps = [unit * run.eps for run in runs]
    dots = _dots(axes, x, y, [run.delay is not None for run in runs], eps)
    figure.colorbar(dots, ax=axes, label=f"eps_g{unit_name}")
    found = diagnosis.correlation
    title = "Delay and final accuracy"
    if found is not None:
        axes.plot(x_ends := np.array([min(x), max(x)]), np.polyval(np.polyfit(x, y, 1), x_ends), "-", color="grey")
        low, high = found.interval
        title += f": r = {-found.value:.2f} ({found.level:.0%}: {-high:.2f} to {-low:.2f})"
    axes.set(xlabel="adaptation delay (epochs)", ylabel="final validation accuracy (%)", title=title)
    axes.set_ylim(0, 100)
    open_frame(axes)
    if diagnosis.never:
        figure.legend(*axes.get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=2)
    _save(figure, path)


def _dots(axes, x: Sequence[float], y: Sequence[float], adapted: Sequence[bool], eps: Sequence[float] | None = None):
    """A dot for each run, a cross where it never adapted; coloured by eps if given. Returns the last drawn."""
    drawn = None
    for wanted, marker, label in ((True, "o", "adapted"), (False, "x", "never adapted")):
        rows = [row for row, done in enumerate(adapted) if done == wanted]
        if rows:
            colour = {"color": "#d55e00"} if eps is None else {
                "c": [eps[row] for row in rows], "cmap": "viridis", "vmin": 0, "vmax": max(eps) / 0.9,
            }  # fmt: skip
            at = [x[row] for row in rows], [y[row] for row in rows]
            drawn = axes.scatter(*at, marker=marker, label=label, clip_on=False, zorder=2, **colour)
    return drawn
