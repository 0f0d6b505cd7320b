"""The accuracy-eps curve and its integral. The only place where the formulas exist.

Distributions of eps other than uniform, as weights for the integral: `threat_distributions.py`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .threat_distributions import ThreatDistribution


def check_epsilons(epsilons: Sequence[float]) -> np.ndarray:
    """Return the grid as float64 (E,).

    Raises:
        ValueError: empty, not finite, not starting at 0, or not strictly increasing.
    """
    grid = np.asarray(epsilons, dtype=np.float64)
    if grid.ndim != 1 or grid.size == 0 or not np.isfinite(grid).all():
        raise ValueError(f"epsilons must be a non-empty list of finite numbers, got {epsilons!r}.")
    if grid[0] != 0:
        raise ValueError(f"epsilons must start at 0, the clean images; got {grid.tolist()}.")
    if (np.diff(grid) <= 0).any():
        raise ValueError(f"epsilons must increase strictly, got {grid.tolist()}.")
    return grid


def robust_accuracies(predictions: Sequence[Sequence[int]], references: Sequence[int]) -> np.ndarray:
    """Share of images classified correctly at each eps, (E,).

    Args:
        predictions: (n_samples, E), the class predicted for each image under attack at each eps.
        references: (n_samples,), the true classes.

    Raises:
        ValueError: no samples, or shapes that do not match.
    """
    predictions, references = np.asarray(predictions), np.asarray(references)
    if predictions.ndim != 2 or references.shape != predictions.shape[:1] or references.size == 0:
        raise ValueError(
            "predictions must be (n_samples, n_epsilons) and references (n_samples,) with at least one sample, "
            f"got {predictions.shape} and {references.shape}."
        )
    return (predictions == references[:, None]).mean(axis=0)


def trapezoid_weights(epsilons: Sequence[float]) -> np.ndarray:
    """Weights (E,), summing to 1, of the trapezoid rule for an eps uniform on [0, eps_g].

    >>> trapezoid_weights([0, 1, 2, 3, 4]).tolist()
    [0.125, 0.25, 0.25, 0.25, 0.125]
    """
    grid = check_epsilons(epsilons)
    if grid.size == 1:
        return np.ones(1)
    gaps = np.diff(grid)
    return (np.append(gaps, 0) + np.insert(gaps, 0, 0)) / (2 * grid[-1])


def expected_robustness(
    accuracies: Sequence[float], epsilons: Sequence[float], weights: Sequence[float] | None = None
) -> float:
    """The mean of Acc_eps over eps: the area under the accuracy-eps curve over eps_g (arXiv 2509.23325).

    Args:
        accuracies: (E,), accuracy at each eps.
        epsilons: (E,), increasing from 0 to eps_g.
        weights: (E,), non-negative and summing to 1, for an eps that is not uniform on [0, eps_g], e.g. of
            `threat_distributions.grid_weights`; the default is the trapezoid rule, exact for the piecewise-linear
            curve through the points.

    Raises:
        ValueError: lengths that differ, or weights that are not a distribution.

    The paper's form, 5 points at 4/255:

    >>> expected_robustness([0.8, 0.7, 0.6, 0.5, 0.4], [0, 1 / 255, 2 / 255, 3 / 255, 4 / 255])
    0.6
    """
    accuracies, grid = np.asarray(accuracies, dtype=np.float64), check_epsilons(epsilons)
    weights = trapezoid_weights(grid) if weights is None else np.asarray(weights, dtype=np.float64)
    if accuracies.shape != grid.shape or weights.shape != grid.shape:
        raise ValueError(
            f"accuracies {accuracies.shape}, epsilons {grid.shape} and weights {weights.shape} must have one length."
        )
    if (weights < 0).any() or not np.isclose(weights.sum(), 1):
        raise ValueError(f"weights must be non-negative and sum to 1, got {weights.tolist()}.")
    # Rounded at the last digits, which only hold summation error.
    return round(float(weights @ accuracies), 12)


def survival_expectation(distribution: "ThreatDistribution", smallest_eps: Sequence[float]) -> float:
    """Expected robustness from each image's smallest fooling eps: the mean of P(eps < smallest_eps), with no grid.

    Args:
        distribution: of eps, on [0, eps_g].
        smallest_eps: (N,), in pixel units of [0, 1]; an image is correct at every eps strictly below. 0: misclassified
            clean; inf: not fooled up to eps_g.

    Raises:
        ValueError: not a non-empty list of numbers >= 0.

    >>> from hf_robust_ft.metrics.robustness.threat_distributions import Uniform
    >>> survival_expectation(Uniform(eps_g=4 / 255), [0, 1 / 255, 2 / 255, float("inf")])
    0.4375
    """
    smallest = np.asarray(smallest_eps, dtype=np.float64)
    if smallest.ndim != 1 or smallest.size == 0 or not (smallest >= 0).all():
        raise ValueError(
            "smallest_eps must be a non-empty list (N,) of numbers of at least 0 (inf for an image never fooled), "
            f"got shape {smallest.shape} and the bad values {smallest[~(smallest >= 0)][:5].tolist()}."
        )
    # Rounded at the last digits, which only hold summation error.
    return round(float(np.mean(distribution.cdf_below(smallest))), 12)
