"""What a grid's cells are scored by: a classifier's accuracy, a segmenter's mean IoU and pixel accuracy."""

from typing import Any, NamedTuple

from hf_robust_ft.evaluation.report import RobustnessReport
from hf_robust_ft.evaluation.segmentation.report import SegmentationReport


class Measure(NamedTuple):
    """A curve over eps and its three figures, by their names in a report.

    Args:
        name: in tables and pictures.
        clean, adversarial, expected: the figures; the last two also of each round of converged steps.
        curve: the values at each eps.
    """

    name: str
    clean: str
    adversarial: str
    expected: str
    curve: str


ACCURACY = Measure("accuracy", "clean_accuracy", "adversarial_accuracy", "expected_robustness", "accuracies")
MEAN_IOU = Measure("mean IoU", "clean_mean_iou", "adversarial_mean_iou", "expected_mean_iou", "mean_ious")
PIXEL_ACCURACY = Measure(
    "pixel accuracy",
    "clean_pixel_accuracy",
    "adversarial_pixel_accuracy",
    "expected_pixel_accuracy",
    "pixel_accuracies",
)
# The first of each is what comparisons are of.
MEASURES: dict[type, tuple[Measure, ...]] = {
    RobustnessReport: (ACCURACY,),
    SegmentationReport: (MEAN_IOU, PIXEL_ACCURACY),
}


def attacks_of(report: RobustnessReport | SegmentationReport) -> list[dict[str, Any]]:
    """The attacks of a report, one or, in the worst case over several, each."""
    return report.attacks if isinstance(report, SegmentationReport) else [report.attack]
