"""Attack steps of a segmentation model doubled until neither score falls further (`attack_steps="auto"`).

An image never falls as a whole, so each round attacks all images anew, and what any round found counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hf_robust_ft.attacks import APGD
from hf_robust_ft.evaluation.convergence import SETTLED, STEPS_LIMIT
from hf_robust_ft.evaluation.segmentation.counts import mean_iou, pixel_accuracy
from hf_robust_ft.evaluation.trust_verdicts import TrustCheck, verdict
from hf_robust_ft.metrics.robustness.curve import expected_robustness

SCORES = {"pixel_accuracy": ("pixel_accuracies", pixel_accuracy), "mean_iou": ("mean_ious", mean_iou)}


def score_curves(worst_right: np.ndarray, lowest_iou: np.ndarray, epsilons: Sequence[float]) -> dict[str, Any]:
    """Both curves of pixel counts (E, N, 3, K), as `worst_case.curves` gives them, and their scores, by name."""
    scores: dict[str, Any] = {}
    for counts, (name, (plural, score)) in zip((worst_right, lowest_iou), SCORES.items(), strict=True):
        curve = score(counts.sum(1)).tolist()
        scores |= {plural: curve, f"clean_{name}": curve[0], f"adversarial_{name}": curve[-1]}
        scores[f"expected_{name}"] = expected_robustness(curve, epsilons)
    return scores


@dataclass
class SegmentationConvergence:
    """The rounds of one evaluation; the scores have settled where the last one lowered both by less than a point.

    Args:
        attacks: of the first round.
        epsilons: the grid, at each of which both scores must stand still.
        limit: the most steps.
    """

    attacks: list[APGD]
    epsilons: list[float]
    limit: int = STEPS_LIMIT
    rounds: list[dict[str, Any]] = field(default_factory=list)
    settled: bool = False

    def after(self, worst_right: np.ndarray, lowest_iou: np.ndarray) -> list[APGD] | None:
        """Enter what is left after a round, (E, N, 3, K); the attacks of the next one, None where this was the last."""
        steps = self.attacks[0].steps
        self.rounds.append({"steps": steps} | score_curves(worst_right, lowest_iou, self.epsilons))
        if len(self.rounds) > 1:
            self.settled = self.largest_fall() < SETTLED
        else:
            self.settled = not any(self.rounds[0][plural][1] for plural, _ in SCORES.values())  # nothing is left
        if self.settled or 2 * steps > self.limit:
            return None
        self.attacks = [replace(attack, steps=2 * steps) for attack in self.attacks]
        return self.attacks

    def largest_fall(self) -> float:
        """By how much the last round lowered either score, at the eps where it did most."""
        before, last = (np.array([each[plural] for plural, _ in SCORES.values()]) for each in self.rounds[-2:])
        return float((before - last).max())

    def described(self) -> dict[str, Any]:
        """What a report keeps: `limit`, `settled`, and of each round its steps and scores."""
        return {"limit": self.limit, "settled": self.settled, "rounds": self.rounds}

    def check(self) -> TrustCheck:
        """What the rounds tell of all images, as the trust check `converged`."""
        first, last = self.rounds[0], self.rounds[-1]
        fall = first["adversarial_pixel_accuracy"] - last["adversarial_pixel_accuracy"]
        told = f"after {last['steps']} attack steps no pixel is right any more"
        if len(self.rounds) > 1:
            told = (
                f"from {self.rounds[-2]['steps']} to {last['steps']} attack steps mean IoU and pixel accuracy fall by "
                f"at most {100 * self.largest_fall():.1f} points at any eps; since {first['steps']} steps the accuracy "
                f"by {100 * fall:.1f} points at the largest one"
            )
        advice = f"the reported figures are too high: raise attack_steps_limit above {self.limit}"
        return verdict("converged", self.settled, fall, told, advice=advice)


def segmentation_convergence_sentence(convergence: Mapping[str, Any]) -> str | None:
    """How many steps it took, whether both scores settled, and what mean IoU was before; None for fixed steps.

    >>> of = lambda steps, iou: {"steps": steps, "adversarial_mean_iou": iou, "expected_mean_iou": 0.8}
    >>> rounds = [of(10, 0.5), of(20, 0.495)]
    >>> found = {"limit": 160, "settled": True, "rounds": rounds}
    >>> segmentation_convergence_sentence(found)  # doctest: +NORMALIZE_WHITESPACE
    'Attack steps doubled until both scores settled, at 20. After 10 steps: 50.0% adversarial mean IoU (0.5 points
    more), 80.0% expected.'
    """
    if not convergence:
        return None
    first, last = convergence["rounds"][0], convergence["rounds"][-1]
    how = f"until both scores settled, at {last['steps']}"
    if not convergence["settled"]:
        how = f"up to {last['steps']} without the scores settling: they are too high"
    gap = 100 * (first["adversarial_mean_iou"] - last["adversarial_mean_iou"])
    return (
        f"Attack steps doubled {how}. After {first['steps']} steps: {first['adversarial_mean_iou']:.1%} adversarial "
        f"mean IoU ({gap:.1f} points more), {first['expected_mean_iou']:.1%} expected."
    )
