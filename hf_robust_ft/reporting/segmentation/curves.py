"""The curves of a segmentation report over eps, as PNG."""

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from hf_robust_ft.attacks.threat_model import format_eps
from hf_robust_ft.evaluation.reliability import is_reliable
from hf_robust_ft.evaluation.segmentation.report import SegmentationReport
from hf_robust_ft.reporting.plots import COLOURS, open_frame


def plot_segmentation_curves(reports: Mapping[str, SegmentationReport], path: str | Path) -> None:
    """Mean IoU (solid) and pixel accuracy (dashed) against eps, one colour a report."""
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    first = next(iter(reports.values()))
    unit, unit_name = (255, " (1/255)") if first.threat_model["norm"] == "Linf" else (1, "")
    for (label, report), colour in zip(reports.items(), cycle(COLOURS)):
        mark = "" if is_reliable(report) else " (doubtful)"
        x = [eps * unit for eps in report.epsilons]
        for style, what, values, expected in (
            ("o-", "mean IoU", report.mean_ious, report.expected_mean_iou),
            ("s--", "pixel accuracy", report.pixel_accuracies, report.expected_pixel_accuracy),
        ):
            named = f"{label}, {what}: expected {expected:.1%}{mark}"
            y = [100 * value for value in values]
            axes.plot(x, y, style, color=colour, markersize=4, clip_on=False, label=named)
    axes.set(
        xlabel=f"{first.threat_model['norm']} budget eps{unit_name}",
        ylabel="under attack (%)",
        ylim=(0, 100),
        xlim=(0, first.epsilons[-1] * unit),
        title=f"Robustness up to {first.threat_model['norm']} {format_eps(first.epsilons[-1])}, "
        f"{first.num_samples} images",
    )
    open_frame(axes)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(figure)
