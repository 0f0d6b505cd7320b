"""Whether the parts of a segmentation report belong together; one from elsewhere may be damaged, or changed by hand."""

import numpy as np

from hf_robust_ft.evaluation.segmentation.report import SegmentationReport
from hf_robust_ft.reporting.consistency import ROUNDING

CURVES = {"mean_ious": "mean_iou", "pixel_accuracies": "pixel_accuracy"}


def check_consistent_segmentation(report: SegmentationReport) -> None:
    """Refuse a report whose figures do not follow from its own curves.

    Raises:
        ValueError: a curve of another length than the grid, figures that are no shares, or scores that the curves do
            not give.
    """
    epsilons = np.array(report.epsilons)
    for curve, score in CURVES.items():
        values = np.array(getattr(report, curve))
        if values.shape != epsilons.shape:
            raise ValueError(f"Its {curve} have {len(values)} points for {len(epsilons)} eps.")
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"Its {curve} are no shares in [0, 1]: {values.tolist()}.")
        follows = {f"clean_{score}": values[0], f"adversarial_{score}": values[-1]}
        if epsilons[-1] > 0:
            follows[f"expected_{score}"] = np.trapezoid(values, epsilons) / epsilons[-1]
        for name, value in follows.items():
            if not abs(getattr(report, name) - value) <= ROUNDING:
                raise ValueError(
                    f"Its {name.replace('_', ' ')} is {getattr(report, name)}, but its curve gives {value:.6f}."
                )
