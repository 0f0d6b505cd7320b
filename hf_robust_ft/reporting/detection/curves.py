"""The curves of a detection report over eps, as PNG."""

from collections.abc import Mapping
from pathlib import Path

from hf_robust_ft.evaluation.detection.report import DetectionReport
from hf_robust_ft.reporting.plots import plot_two_scores

SCORES = ("box mAP", "maps", "expected_map"), ("mAP at IoU 0.5", "maps_50", "expected_map_50")


def plot_detection_curves(reports: Mapping[str, DetectionReport], path: str | Path) -> None:
    """Box mAP and mAP at IoU 0.5."""
    plot_two_scores(reports, path, SCORES, "precision under attack (%), experimental", mark=lambda report: "")
