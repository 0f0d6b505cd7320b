"""How a segmentation report was measured, as what must be shared before two results may be compared."""

from hf_robust_ft.evaluation.segmentation.report import TASK, SegmentationReport
from hf_robust_ft.reporting.comparability import UNKNOWN, Setting, image_digests, image_set
from hf_robust_ft.reporting.segmentation.card import attack_of


def segmentation_setting(report: SegmentationReport) -> Setting:
    """The setting of a report."""
    which = image_set(image_digests(report)) or UNKNOWN
    return Setting.of(report, attack=attack_of(report), image_set=which, task=TASK)
