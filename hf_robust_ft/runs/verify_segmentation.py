"""A segmentation report measured once more as it says, and compared; what `hf-robust-ft verify` does of masks.

What an attack found there is a point an image, eps and attack, too much to store: the attacks run again. They draw
nothing, so the same figures come out, up to the rounding of another device.
"""

from collections.abc import Sequence
from typing import Any

import torch

from hf_robust_ft.attacks import APGD
from hf_robust_ft.attacks.pixels import PixelSpace
from hf_robust_ft.attacks.threat_model import ThreatModel, format_eps
from hf_robust_ft.evaluation.convergence import AUTO, STEPS_LIMIT
from hf_robust_ft.evaluation.reliability import is_reliable
from hf_robust_ft.evaluation.segmentation.evaluate import evaluate_segmentation
from hf_robust_ft.evaluation.segmentation.report import SegmentationReport
from hf_robust_ft.hub.verification import Verified
from hf_robust_ft.reporting.measures import MEAN_IOU, PIXEL_ACCURACY
from hf_robust_ft.reporting.segmentation.consistency import check_consistent_segmentation
from hf_robust_ft.runs.arguments import DataArguments
from hf_robust_ft.runs.evaluate_segmentation import load_segmenter_and_images
from hf_robust_ft.runs.task_arguments import SEGMENTATION
from hf_robust_ft.runs.tasks import TASKS

TOLERATED = 0.005  # by which a score may differ under attack, whose steps go by signs; of the clean ones a tenth


def verify_segmentation(
    report: SegmentationReport, options: Any, data_args: DataArguments
) -> tuple[list[Verified], Any]:
    """Measure the report's model on its images again: what was found, and the images.

    Args:
        options: `EvaluationArguments`, of which model, split, batch size and device count.

    Raises:
        ValueError: what `evaluate_segmentation` or loading refuse.
    """
    model, processor, images, _, known = load_segmenter_and_images(options, data_args)
    auto = bool(report.convergence)
    attack = APGD(**report.attacks[0])
    by_protocol = report.protocol != "paper"
    again = evaluate_segmentation(
        model.to(options.device or ("cuda" if torch.cuda.is_available() else "cpu")),
        TASKS[SEGMENTATION].inputs(images, processor, known, "none", False),
        threat_model=ThreatModel(**report.threat_model),
        pixel_space=PixelSpace.from_processor(processor),
        epsilons=report.epsilons,
        attack=None if by_protocol else attack,
        attack_steps=AUTO if auto else attack.steps,
        attack_steps_limit=report.convergence.get("limit", STEPS_LIMIT),
        protocol=report.protocol,
        ignore_index=known.label_for_ignored,
        checks=False,
        batch_size=options.batch_size,
    )
    return [_scores(report), _images(report, again), _clean(report, again), _under_attack(report, again)], images


def _scores(report: SegmentationReport) -> Verified:
    try:
        check_consistent_segmentation(report)
    except ValueError as error:
        return Verified("scores", False, str(error))
    return Verified("scores", True, "clean, adversarial and expected ones follow from the curves")


def _images(report: SegmentationReport, again: SegmentationReport) -> Verified:
    told = report.image_hashes
    if sorted(told) == sorted(again.image_hashes):
        return Verified("images", True, f"{len(told)}, the same as in the report")
    others = len(set(again.image_hashes) - set(told))
    return Verified(
        "images", False, f"{len(again.image_hashes)}, of which {others} are none of the report's {len(told)}"
    )


def _clean(report: SegmentationReport, again: SegmentationReport) -> Verified:
    gaps = [abs(getattr(report, each.clean) - getattr(again, each.clean)) for each in (MEAN_IOU, PIXEL_ACCURACY)]
    told = " and ".join(
        f"{each.name} {getattr(again, each.clean):.2%} ({getattr(report, each.clean):.2%} in the report)"
        for each in (MEAN_IOU, PIXEL_ACCURACY)
    )
    return Verified("clean scores", max(gaps) <= TOLERATED / 10, told)


def _under_attack(report: SegmentationReport, again: SegmentationReport) -> Verified:
    """The point of either curve that differs most: a report that lies too low is as wrong as one too high."""
    gap, eps, measure = max(
        (abs(ours - theirs), eps, each)
        for each in (MEAN_IOU, PIXEL_ACCURACY)
        for eps, ours, theirs in zip(report.epsilons, *(_curves(each, (report, again))), strict=True)
    )
    told, found = (dict(zip(report.epsilons, curve, strict=True))[eps] for curve in _curves(measure, (report, again)))
    doubt = "" if is_reliable(report) else " (doubtful)"
    where = f"{report.threat_model['norm']} {format_eps(eps)}"
    sentence = f"{measure.name} at {where} {found:.2%}, {told:.2%}{doubt} in the report, the largest of all differences"
    return Verified("under attack", gap <= TOLERATED, sentence)


def _curves(measure: Any, reports: Sequence[SegmentationReport]) -> list[list[float]]:
    return [getattr(each, measure.curve) for each in reports]
