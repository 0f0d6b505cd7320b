"""A `robustness_report.json` of any task: its key `task` says which; of classification there is none."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_robust_ft.evaluation.detection.report import DetectionReport
from hf_robust_ft.evaluation.report import RobustnessReport
from hf_robust_ft.evaluation.segmentation.report import SegmentationReport

SEGMENTATION, DETECTION = "image-segmentation", "object-detection"

OF_OTHER_TASKS = {SEGMENTATION: SegmentationReport, DETECTION: DetectionReport}
Report = RobustnessReport | SegmentationReport | DetectionReport


def read_report_file(path: str | Path) -> Report:
    """Read a report of the task that it names.

    Raises:
        ValueError: no report of this package.
    """
    return OF_OTHER_TASKS.get(task_of_file(path), RobustnessReport).from_json(path)


def report_of(content: Mapping[str, Any]) -> Report:
    """A report of the task that its content names, as `to_dict` gives it."""
    return OF_OTHER_TASKS.get(content.get("task"), RobustnessReport)(**content)


def task_of_file(path: str | Path) -> str | None:
    """The task that a report file names; None where it names none, or is none."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:
        return None
    return content.get("task") if isinstance(content, dict) else None


def refuse_segmentation_report(path: str | Path, what: str) -> None:
    """Raise a ValueError where a file is a report of segmentation, which `what` does not know."""
    if task_of_file(path) == SEGMENTATION:
        raise ValueError(
            f"{path} is a report of {SEGMENTATION}, and {what} of classification alone. Its card (README.md) shows it, "
            "and leaderboard ranks it."
        )
    refuse_detection_report(path, f"{what} of classification alone")


def refuse_detection_report(path: str | Path, what: str) -> None:
    """Raise a ValueError where a file is a report of detection, whose figures nothing checks yet."""
    if task_of_file(path) == DETECTION:
        raise ValueError(
            f"{path} is a report of {DETECTION}, which is experimental, and {what}. Its card (README.md) shows it."
        )
