"""The curves of a segmentation report over eps, as PNG."""

from collections.abc import Mapping
from pathlib import Path

from hf_robust_ft.evaluation.segmentation.report import SegmentationReport
from hf_robust_ft.reporting.plots import plot_two_scores

SCORES = (
    ("mean IoU", "mean_ious", "expected_mean_iou"),
    ("pixel accuracy", "pixel_accuracies", "expected_pixel_accuracy"),
)


def plot_segmentation_curves(reports: Mapping[str, SegmentationReport], path: str | Path) -> None:
    """Mean IoU and pixel accuracy."""
    plot_two_scores(reports, path, SCORES, "under attack (%)")
