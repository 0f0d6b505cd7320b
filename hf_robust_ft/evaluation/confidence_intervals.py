"""What other images of the same kind would change: confidence intervals of a report's scores over its images.

Both intervals hold their level on few images and at the ends, where a bootstrap has no width: where none of 100 images
stands, up to 3.6 % may.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest

CONFIDENCE = 0.95
METHOD = "Clopper-Pearson"
DRAWS = 10_000  # moves an end by 1 % of the interval's width
AT_ONCE = 5_000_000  # numbers drawn, 40 MB


def accuracy_interval(hits: int, count: int) -> tuple[float, float]:
    """The Clopper-Pearson interval of `hits` in `count` images: it covers the accuracy in 95 % of samples or more.

    >>> [round(end, 4) for end in accuracy_interval(0, 100)]
    [0.0, 0.0362]
    """
    found = binomtest(int(hits), int(count)).proportion_ci(CONFIDENCE, method="exact")
    return float(found.low), float(found.high)


def mean_interval(shares: Sequence[float], draws: int = DRAWS) -> tuple[float, float]:
    """The 95 % interval of the mean of `shares`: Clopper-Pearson's for shares of 0 and 1, narrower for others.

    A bootstrap with weights uniform on the simplex, over the images and one more: of share 0 for the lower end, of
    share 1 for the upper one (Gaffke's bound, arXiv 1905.06208). No distribution on [0, 1] is known of whose mean it
    covers less than its level; proven it is for shares of 0 and 1.

    Args:
        shares: (N,) in [0, 1], one an image, drawn independently.
        draws: of the weights, from a fixed seed, since reports must reproduce.

    >>> [round(end, 2) for end in mean_interval([0.0] * 100)]
    [0.0, 0.04]
    """
    rng = np.random.default_rng(0)
    values, counts = np.unique(np.asarray(shares, dtype=np.float64), return_counts=True)
    ends = []
    for start in range(0, draws, batch := max(1, AT_ONCE // len(values))):
        # Weights uniform on the simplex are exponential variables over their sum; those of equal shares add to gammas.
        size = min(batch, draws - start)
        weights, further = rng.standard_gamma(counts, (size, len(values))), rng.standard_exponential(size)
        total, sums = weights.sum(1) + further, weights @ values
        ends.append(np.stack([sums / total, (sums + further) / total]))
    low, high = np.concatenate(ends, axis=1)
    beyond = (1 - CONFIDENCE) / 2
    return float(np.quantile(low, beyond)), float(np.quantile(high, 1 - beyond))


def confidence_intervals(correct: np.ndarray, shares: np.ndarray, autoattack: Sequence[bool] = ()) -> dict[str, Any]:
    """The entry `confidence_intervals` of a report.

    Args:
        correct: (N, E), whether each image is classified correctly at each eps.
        shares: (N,), each image's share of the expected robustness.
        autoattack: of the images AutoAttack was run on, which stand.
    """
    accuracies = [_rounded(accuracy_interval(hits, len(correct))) for hits in correct.sum(0)]
    found = {
        "level": CONFIDENCE,
        "method": METHOD,
        "clean_accuracy": accuracies[0],
        "adversarial_accuracy": accuracies[-1],
        "expected_robustness": _rounded(mean_interval(shares)),
        "accuracies": accuracies,
    }
    if len(autoattack):
        found["autoattack_accuracy"] = _rounded(accuracy_interval(np.sum(autoattack), len(autoattack)))
    return found


def interval_method(intervals: Mapping[str, Any]) -> str | None:
    """How a report's intervals were made, those of before `method` by a bootstrap; None where it has none."""
    return intervals.get("method", "bootstrap") if intervals else None


def _rounded(interval: tuple[float, float]) -> list[float]:
    return [round(end, 6) for end in interval]
