"""Whether a segmentation model may be called robust at the eps it was measured up to.

The bar is that of classification (`reporting.verdict`) for the mean IoU: at that eps at least half of what it is
without an attack, and more than calling every pixel by the most frequent class gives.
"""

from hf_robust_ft.evaluation.segmentation.report import SegmentationReport
from hf_robust_ft.reporting.verdict import Verdict, Words, verdict_by


def segmentation_verdict(report: SegmentationReport) -> Verdict | None:
    """The verdict on a report; None where no attack was run."""
    words = Words("the mean IoU is {}", "it is {}", "calling every pixel by the most frequent class")
    return verdict_by(report, report.mean_ious, guessed_mean_iou(report), words)


def guessed_mean_iou(report: SegmentationReport) -> float:
    """The mean IoU of calling every pixel by the most frequent class; 0 where the classes are not known."""
    labelled = [row["labelled_pixels"] for row in report.per_class]
    return max(labelled) / sum(labelled) / sum(count > 0 for count in labelled) if sum(labelled) else 0.0
