"""From the pixels counted of each image to a report."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hf_robust_ft.evaluation.confidence_intervals import CONFIDENCE
from hf_robust_ft.evaluation.segmentation.convergence import SCORES, SegmentationConvergence, score_curves
from hf_robust_ft.evaluation.segmentation.counts import LABELLED, PREDICTED, class_ious, interval
from hf_robust_ft.evaluation.segmentation.report import METHOD, SegmentationReport
from hf_robust_ft.evaluation.segmentation.settings import SegmentationSettings
from hf_robust_ft.evaluation.trust_verdicts import TrustCheck
from hf_robust_ft.metrics.robustness.curve import expected_robustness, trapezoid_weights
from hf_robust_ft.provenance.class_names import name_of
from hf_robust_ft.provenance.image_hashes import combined_hash


def build_report(
    worst_right: np.ndarray,
    lowest_iou: np.ndarray,
    *,
    settings: SegmentationSettings,
    rounds: SegmentationConvergence | None = None,
    checks: Sequence[TrustCheck] = (),
    image_hashes: Sequence[str] = (),
    passes: Sequence[Sequence[int]] = (),
    class_names: Sequence[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> SegmentationReport:
    """Score what is left of each image.

    Args:
        worst_right: (E, N, 3, K), pixel counts of each image at each eps, the worst for its right pixels.
        lowest_iou: (E, N, 3, K), the worst for the data set's mean IoU.
        rounds: that gave it, with steps "auto".
        passes: images in the forwards and gradients of each batch.
        class_names: names for `per_class`; without them, indices.
    """
    intervals: dict[str, Any] = {"level": CONFIDENCE, "method": METHOD}
    for counts, (name, (plural, score)) in zip((worst_right, lowest_iou), SCORES.items(), strict=True):
        intervals |= _intervals(counts, name, plural, score, settings.epsilons)
    return SegmentationReport(
        **score_curves(worst_right, lowest_iou, settings.epsilons),
        epsilons=list(settings.epsilons),
        threat_model={"norm": settings.threat_model.norm, "eps": settings.threat_model.eps},
        attacks=[dataclasses.asdict(attack) for attack in (rounds or settings).attacks],
        protocol=settings.protocol,
        ignore_index=settings.ignore_index,
        num_samples=worst_right.shape[1],
        num_classes=worst_right.shape[-1],
        confidence_intervals=intervals,
        per_class=_per_class(lowest_iou, settings.epsilons, class_names),
        checks=[dataclasses.asdict(check) for check in checks],
        convergence=rounds.described() if rounds else {},
        image_hashes=list(image_hashes),
        image_digest=combined_hash(image_hashes),
        passes=dict(zip(("forwards", "gradients"), map(sum, zip(*passes, strict=True)), strict=False)),
        metadata=metadata or {},
    )


def _intervals(counts: np.ndarray, name: str, plural: str, score: Any, epsilons: Sequence[float]) -> dict[str, Any]:
    each = [interval(at_eps, score) for at_eps in counts]
    weights = trapezoid_weights(epsilons)
    expected = interval(np.swapaxes(counts, 0, 1), lambda sums: score(sums) @ weights)
    return {plural: each, f"clean_{name}": each[0], f"adversarial_{name}": each[-1], f"expected_{name}": expected}


def _per_class(
    counts: np.ndarray, epsilons: Sequence[float], class_names: Sequence[str] | None
) -> list[dict[str, Any]]:
    """Of each class that is labelled or predicted somewhere, IoU before and under attack and its mean over eps."""
    sums = counts.sum(1)  # (E, 3, K)
    ious, rows = class_ious(sums), []
    for label in np.flatnonzero(sums[:, LABELLED].any(0) | sums[:, PREDICTED].any(0)).tolist():
        curve = np.nan_to_num(ious[:, label], nan=1.0)  # nowhere at this eps, so nothing of it is wrong
        rows.append(
            {
                "class": name_of(class_names, label),
                "labelled_pixels": int(sums[0, LABELLED, label]),
                "clean_iou": float(curve[0]),
                "adversarial_iou": float(curve[-1]),
                "expected_iou": expected_robustness(curve.tolist(), epsilons),
            }
        )
    return rows
