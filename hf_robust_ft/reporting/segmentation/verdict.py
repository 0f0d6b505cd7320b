"""Whether a segmentation model may be called robust at the eps it was measured up to.

The bar is that of classification (`reporting.verdict`) for the mean IoU: at that eps at least half of what it is
without an attack, and more than calling every pixel by the most frequent class gives.
"""

from hf_robust_ft.attacks.threat_model import format_eps
from hf_robust_ft.evaluation.segmentation.report import SegmentationReport
from hf_robust_ft.reporting.verdict import BAR, Verdict


def segmentation_verdict(report: SegmentationReport) -> Verdict | None:
    """The verdict on a report; None where no attack was run."""
    if report.epsilons[-1] <= 0:
        return None
    norm, clean, at_eps = report.threat_model["norm"], report.clean_mean_iou, report.adversarial_mean_iou
    by_guessing = guessed_mean_iou(report)
    passed = [each >= BAR * clean and each > by_guessing for each in report.mean_ious]
    count = (*passed, False).index(False)  # points from 0 on that pass
    threat, up_to = (f"{norm} {format_eps(eps)}" for eps in (report.epsilons[-1], report.epsilons[max(count - 1, 0)]))
    if count == len(passed):
        return Verdict(threat, True, threat, f"Robust at {threat}: the mean IoU is {at_eps:.1%} there.")
    limit = f"at least half of the {clean:.1%} without an attack"
    if by_guessing >= BAR * clean:
        limit = f"more than the {by_guessing:.1%} that calling every pixel by the most frequent class gives"
    kept = "Nor is it at any smaller eps measured."
    if count > 1:
        kept = f"It still is at {up_to}, where it is {report.mean_ious[count - 1]:.1%}."
    told = f"Not robust at {threat}: the mean IoU is {at_eps:.1%} there, and it takes {limit}. {kept}"
    return Verdict(threat, False, up_to if count > 1 else "", told)


def guessed_mean_iou(report: SegmentationReport) -> float:
    """The mean IoU of calling every pixel by the most frequent class; 0 where the classes are not known."""
    labelled = [row["labelled_pixels"] for row in report.per_class]
    return max(labelled) / sum(labelled) / sum(count > 0 for count in labelled) if sum(labelled) else 0.0
