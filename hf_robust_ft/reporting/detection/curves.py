"""The curves of a detection report over eps, as PNG."""

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from hf_robust_ft.evaluation.detection.report import DetectionReport
from hf_robust_ft.reporting.plots import COLOURS, label_curves


def plot_detection_curves(reports: Mapping[str, DetectionReport], path: str | Path) -> None:
    """Box mAP (solid) and mAP at IoU 0.5 (dashed) against eps, one colour a report."""
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    first = next(iter(reports.values()))
    unit = 255 if first.threat_model["norm"] == "Linf" else 1
    for (label, report), colour in zip(reports.items(), cycle(COLOURS)):
        x = [eps * unit for eps in report.epsilons]
        for style, what, values, expected in (
            ("o-", "box mAP", report.maps, report.expected_map),
            ("s--", "mAP at IoU 0.5", report.maps_50, report.expected_map_50),
        ):
            y = [100 * value for value in values]
            named = f"{label}, {what}: expected {expected:.1%}"
            axes.plot(x, y, style, color=colour, markersize=4, clip_on=False, label=named)
    label_curves(axes, first, "precision under attack (%), experimental")
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(figure)
