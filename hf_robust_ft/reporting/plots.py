"""The accuracy-eps curve and the course of training, as PNG."""

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

from hf_robust_ft.attacks.threat_model import format_eps
from hf_robust_ft.evaluation.reliability import is_reliable
from hf_robust_ft.evaluation.report import RobustnessReport
from hf_robust_ft.reporting.report_files import Report

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe-Ito: told apart by everyone
MARKERS = ("o", "s", "^", "D", "v", "P")  # also without colours


def plot_curves(reports: Mapping[str, RobustnessReport], path: str | Path) -> None:
    """Accuracy against eps, one line a report, in the band of its 95 % confidence intervals where it has any."""
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    first = next(iter(reports.values()))
    unit, _ = eps_unit(first.threat_model["norm"])
    for (label, report), colour, marker in zip(reports.items(), cycle(COLOURS), cycle(MARKERS)):
        x = [eps * unit for eps in report.epsilons]
        y = [100 * accuracy for accuracy in report.accuracies]
        axes.plot(
            x,
            y,
            f"{marker}-",
            color=colour,
            markersize=4,
            clip_on=False,
            label=f"{label}: expected {report.expected_robustness:.1%}{_mark(report)}",
        )
        bands = report.confidence_intervals.get("accuracies")
        if bands:
            low, high = zip(*([100 * value for value in pair] for pair in bands), strict=True)
            name = "95 % interval" if len(reports) == 1 else None
            axes.fill_between(x, low, high, color=colour, alpha=0.25, linewidth=0, label=name)
    label_curves(axes, first, "accuracy under attack (%)")
    axes.legend(frameon=False)
    _save(figure, path)


def plot_two_scores(
    reports: Mapping[str, Report],
    path: str | Path,
    scores: Sequence[tuple[str, str, str]],
    ylabel: str,
    mark: Callable[[Report], str] | None = None,
) -> None:
    """Two scores against eps, the first solid, the second dashed, one colour a report.

    Args:
        scores: of each its name, and the report's fields of its curve and its expected value.
        mark: what follows a report's expected values; by default "(doubtful)" where they are.
    """
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    first = next(iter(reports.values()))
    unit, _ = eps_unit(first.threat_model["norm"])
    for (label, report), colour in zip(reports.items(), cycle(COLOURS)):
        x = [eps * unit for eps in report.epsilons]
        for style, (what, curve, expected) in zip(("o-", "s--"), scores, strict=True):
            y = [100 * value for value in getattr(report, curve)]
            named = f"{label}, {what}: expected {getattr(report, expected):.1%}{(mark or _mark)(report)}"
            axes.plot(x, y, style, color=colour, markersize=4, clip_on=False, label=named)
    label_curves(axes, first, ylabel)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=1 if len(reports) == 1 else 2)
    _save(figure, path)


def label_curves(axes: plt.Axes, report: Report, score: str) -> None:
    """Name the axes of curves over eps, as of this report."""
    norm, eps = report.threat_model["norm"], report.epsilons[-1]
    unit, unit_name = eps_unit(norm)
    axes.set(
        xlabel=f"{norm} budget eps{unit_name}",
        ylabel=score,
        ylim=(0, 100),
        xlim=(0, eps * unit),
        title=f"Robustness up to {norm} {format_eps(eps)}, {report.num_samples} images",
    )
    axes.xaxis.get_major_locator().set_params(integer=norm == "Linf")
    open_frame(axes)


def plot_training(
    histories: Mapping[str, list[dict]], path: str | Path, norm: str = "Linf", score: str = "accuracy"
) -> None:
    """Validation accuracy, or another score, by epoch over the budget eps of each run (`Trainer`'s log histories).

    Where no run was validated while it trained, eps alone.
    """
    unit, unit_name = eps_unit(norm)
    scores = _validation_scores(histories, score)
    heights = (3, 1.2) if scores else (1.2,)
    figure = plt.figure(figsize=(6.4, 1 + sum(heights)), layout="constrained")
    *tops, bottom = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    for top in tops:
        for label, style, colour, points in scores:
            top.plot(*zip(*points, strict=True), style, color=colour, clip_on=False, label=label)
        top.set(ylabel=f"validation {score.replace('_', ' ')} (%)", ylim=(0, 100))
        figure.legend(*top.get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=3)
    for (label, history), colour in zip(histories.items(), cycle(COLOURS)):
        budget = [(entry["epoch"], unit * entry["eps"]) for entry in history if "loss" in entry and "eps" in entry]
        if budget:
            # A log at the end of an epoch tells the eps of the steps before it.
            budget.insert(0, (0.0, budget[0][1]))
            bottom.step(*zip(*budget, strict=True), where="pre", color=colour, label=label)
    bottom.set(xlabel="epoch", ylabel=f"eps{unit_name}")
    strip_of_eps(bottom, norm)
    for axes in figure.axes:
        open_frame(axes)
    figure.axes[0].set_title("Training")
    _save(figure, path)


def _validation_scores(histories: Mapping[str, list[dict]], score: str) -> list[tuple[str, str, str, list]]:
    """The lines of scores over epochs: label, style, colour and points in percent."""
    lines = []
    for (label, history), colour in zip(histories.items(), cycle(COLOURS)):
        for name, style in (("clean", "-"), ("adversarial", "--")):
            key = f"eval_{name}_{score}"
            points = [(entry["epoch"], 100 * entry[key]) for entry in history if key in entry and "epoch" in entry]
            if points:
                lines.append((f"{label}, {name}", style, colour, points))
    return lines


def eps_unit(norm: str) -> tuple[int, str]:
    """What eps in pixel units of [0, 1] is multiplied by on an axis, and what the axis says of it."""
    return (255, " (1/255)") if norm == "Linf" else (1, "")


def open_frame(axes: plt.Axes) -> None:
    """A faint grid, and no line above and on the right, which would hide a curve at 100 %."""
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def strip_of_eps(axes: plt.Axes, norm: str) -> None:
    """The y axis of eps over training: whole numbers under Linf, and room for a line at 0 to be seen."""
    axes.set_ylim(bottom=-0.04 * axes.get_ylim()[1])
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=norm == "Linf"))


def _mark(report: Report) -> str:
    return "" if is_reliable(report) else " (doubtful)"


def _save(figure: plt.Figure, path: str | Path) -> None:
    figure.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(figure)
