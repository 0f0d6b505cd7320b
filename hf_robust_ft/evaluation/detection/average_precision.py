"""COCO's mean average precision of boxes, as torchmetrics computes it by pycocotools."""

import importlib.util
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

HOW_TO_INSTALL = (
    "Box mAP is measured by torchmetrics and pycocotools, and {missing} is not installed: pip install "
    "'hf_robust_ft[detection]'."
)


class BoxScores(NamedTuple):
    """Mean average precision in [0, 1], over classes and IoU thresholds from 0.5 to 0.95, and at IoU 0.5 alone."""

    map: float
    map_50: float


def check_installed() -> None:
    """Raise an ImportError that says what to install, unless it is there."""
    for name in ("torchmetrics", "pycocotools"):
        if importlib.util.find_spec(name) is None:
            raise ImportError(HOW_TO_INSTALL.format(missing=name))


class AveragePrecision:
    """Takes in what was found in images, and scores all of it together.

    Raises:
        ImportError: torchmetrics or pycocotools is not installed.
    """

    def __init__(self):
        check_installed()
        from torchmetrics.detection import MeanAveragePrecision

        self._metric = MeanAveragePrecision(box_format="xyxy", iou_type="bbox")

    def update(self, found: Sequence[dict[str, Tensor]], labelled: Sequence[dict[str, Tensor]]) -> None:
        """Images, as `boxes.detected_boxes` and `boxes.labelled_boxes` give them."""
        self._metric.update(list(found), list(labelled))

    def compute(self) -> BoxScores:
        """Over the images so far.

        Raises:
            ValueError: none of them has a labelled box.
        """
        scores = self._metric.compute()
        found = BoxScores(float(scores["map"]), float(scores["map_50"]))
        if found.map < 0:  # COCO's sign for that
            raise ValueError("No image of the data has a labelled box, so there is nothing to find and no mAP.")
        return found
