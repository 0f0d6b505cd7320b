"""The curves of a segmentation report over eps, as PNG."""

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path

from hf_robust_ft.evaluation.segmentation.report import SegmentationReport
from hf_robust_ft.reporting.plots import COLOURS, _mark, _save, _unit, label_curves, plt


def plot_segmentation_curves(reports: Mapping[str, SegmentationReport], path: str | Path) -> None:
    """Mean IoU (solid) and pixel accuracy (dashed) against eps, one colour a report."""
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    first = next(iter(reports.values()))
    unit, _ = _unit(first.threat_model["norm"])
    for (label, report), colour in zip(reports.items(), cycle(COLOURS)):
        x = [eps * unit for eps in report.epsilons]
        for style, what, values, expected in (
            ("o-", "mean IoU", report.mean_ious, report.expected_mean_iou),
            ("s--", "pixel accuracy", report.pixel_accuracies, report.expected_pixel_accuracy),
        ):
            named = f"{label}, {what}: expected {expected:.1%}{_mark(report)}"
            y = [100 * value for value in values]
            axes.plot(x, y, style, color=colour, markersize=4, clip_on=False, label=named)
    label_curves(axes, first, "under attack (%)")
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path)
