"""From what was found for each image to a report; the `evaluate` module does the counting."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hf_robust_ft.attacks.threat_model import ThreatModel
from hf_robust_ft.evaluation.confidence_intervals import confidence_intervals
from hf_robust_ft.evaluation.report import RobustnessReport
from hf_robust_ft.evaluation.trust_verdicts import TrustCheck
from hf_robust_ft.metrics.robustness.curve import trapezoid_weights
from hf_robust_ft.metrics.robustness.robustness import Robustness
from hf_robust_ft.metrics.robustness.threat_distribution_specs import distribution_spec
from hf_robust_ft.provenance.class_names import name_of
from hf_robust_ft.provenance.image_hashes import combined_hash


def build_report(
    references: Sequence[int],
    smallest_epsilons: Sequence[float],
    wrong_classes: Sequence[int],
    *,
    threat_model: ThreatModel,
    epsilons: Sequence[float],
    attack: Any,
    protocol: str = "paper",
    distributions: Sequence[str | Mapping[float | str, float]] = (),
    autoattack: Sequence[bool] = (),
    autoattack_images: Sequence[int] = (),
    image_hashes: Sequence[str] = (),
    found_again: Sequence[bool | None] = (),
    passes: Sequence[Sequence[int]] = (),
    checks: Sequence[TrustCheck] = (),
    convergence: Mapping[str, Any] | None = None,
    class_names: Sequence[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> RobustnessReport:
    """Score what was found for each image; the `evaluate` module does the counting.

    Args:
        references: (N,), the true classes.
        smallest_epsilons: (N,), the smallest eps found to fool each image; infinite where there is none.
        wrong_classes: (N,), the class predicted there (anything where there is none).
        autoattack: of the images AutoAttack was asked about, whether it left them standing.
        autoattack_images: their indices.
        image_hashes: (N,), of each image.
        found_again: (N,), whether the example of each image was misclassified again, None where there is none.
        passes: images in the forwards and gradients of each part of the work.
        class_names: names for `per_class`; without them, indices.
    """
    grid, labels = np.asarray(epsilons, dtype=np.float64), np.asarray(references)
    smallest = np.asarray(smallest_epsilons, dtype=np.float64)
    correct = smallest[:, None] > grid
    predictions = np.where(correct, labels[:, None], np.asarray(wrong_classes)[:, None])
    scores = Robustness(keep_in_memory=True).compute(predictions=predictions, references=labels, epsilons=list(grid))
    shares = share_of_each_image(smallest, grid, protocol)
    if protocol == "exact":
        scores["expected_robustness"] = float(shares.mean())
    report = RobustnessReport(
        **scores,
        epsilons=grid.tolist(),
        threat_model={"norm": threat_model.norm, "eps": threat_model.eps},
        attack=dataclasses.asdict(attack),
        protocol=protocol,
        num_samples=len(labels),
        smallest_epsilons=[eps if np.isfinite(eps) else None for eps in smallest.tolist()],
        confidence_intervals=confidence_intervals(correct, shares, autoattack),
        per_class=_per_class(labels, correct, shares, class_names),
        autoattack_accuracy=float(np.mean(autoattack)) if len(autoattack) else None,
        autoattack_samples=len(autoattack),
        autoattack_images=list(autoattack_images),
        checks=[dataclasses.asdict(check) for check in checks],
        convergence=dict(convergence or {}),
        image_hashes=list(image_hashes),
        image_digest=combined_hash(image_hashes),
        passes=dict(zip(("forwards", "gradients"), map(sum, zip(*passes, strict=True)), strict=False)),
        found_again=_count_again(found_again),
        metadata=metadata or {},
    )
    under = {distribution_spec(each): report.expected_robustness_under(each) for each in distributions}
    return dataclasses.replace(report, distributions=under)


def share_of_each_image(smallest_epsilons: np.ndarray, epsilons: np.ndarray, protocol: str) -> np.ndarray:
    """Each image's own share of the expected robustness, whose mean it is: (N,) from its smallest fooling eps (N,)."""
    if protocol == "exact" and epsilons[-1] > 0:
        return np.minimum(smallest_epsilons, epsilons[-1]) / epsilons[-1]
    return (smallest_epsilons[:, None] > epsilons) @ trapezoid_weights(epsilons)


def _per_class(
    labels: np.ndarray, correct: np.ndarray, shares: np.ndarray, class_names: Sequence[str] | None
) -> list[dict[str, Any]]:
    rows = []
    for label in np.unique(labels):
        of_class = labels == label
        rows.append(
            {
                "class": name_of(class_names, int(label)),
                "samples": int(of_class.sum()),
                "clean_accuracy": float(correct[of_class, 0].mean()),
                "adversarial_accuracy": float(correct[of_class, -1].mean()),
                "expected_robustness": float(shares[of_class].mean()),
            }
        )
    return rows


def _count_again(found_again: Sequence[bool | None]) -> dict[str, int]:
    judged = [wrong for wrong in found_again if wrong is not None]
    return {"examples": len(judged), "misclassified": sum(judged)} if len(found_again) else {}
