"""What the page tells otherwise of classifiers and of segmenters."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from hf_robust_ft.evaluation.protocols import PROTOCOLS
from hf_robust_ft.evaluation.report import RobustnessReport
from hf_robust_ft.evaluation.segmentation.protocols import SEGMENTATION_PROTOCOLS
from hf_robust_ft.evaluation.segmentation.report import SegmentationReport
from hf_robust_ft.reporting.comparability import Setting
from hf_robust_ft.reporting.objective import objective_doubt
from hf_robust_ft.reporting.page.protocol_table import attack_facts, attack_facts_of_masks
from hf_robust_ft.reporting.segmentation.setting import segmentation_setting


class PageTask(NamedTuple):
    """A task's part of the page.

    Args:
        answers: what its models do, in the page's first line.
        setting: how a report was measured.
        attack_facts: what the table of protocols tells of the attack.
        protocols: in words.
        class_scores: the key in a row by class of each score.
        counted: the key of what a class has many of, and its name.
        strips: what stands above pictures of attacked images.
        doubt: a warning of how it was trained, or None.
    """

    answers: str
    setting: Callable[[Any], Setting]
    attack_facts: Callable[[Any], dict[str, Any]]
    protocols: Mapping[str, str]
    class_scores: Mapping[str, str]
    counted: tuple[str, str]
    strips: str
    doubt: Callable[[Any], str | None]


PAGE_TASKS: dict[type, PageTask] = {
    RobustnessReport: PageTask(
        answers="classifier keeps its answer",
        setting=Setting.of,
        attack_facts=attack_facts,
        protocols={name: protocol.description for name, protocol in PROTOCOLS.items()},
        class_scores={
            "expected robustness": "expected_robustness",
            "adversarial accuracy": "adversarial_accuracy",
            "clean accuracy": "clean_accuracy",
        },
        counted=("samples", "images"),
        strips="Pictures only: measured again with evaluate --save_examples, the differences can be amplified here.",
        doubt=objective_doubt,
    ),
    SegmentationReport: PageTask(
        answers="segmenter keeps its answer at each pixel",
        setting=segmentation_setting,
        attack_facts=attack_facts_of_masks,
        protocols={name: protocol.description for name, protocol in SEGMENTATION_PROTOCOLS.items()},
        class_scores={"expected IoU": "expected_iou", "adversarial IoU": "adversarial_iou", "clean IoU": "clean_iou"},
        counted=("labelled_pixels", "pixels"),
        strips="From left to right: an image, what the model makes of it, the attacked image, what it makes of that.",
        doubt=lambda report: None,
    ),
}
