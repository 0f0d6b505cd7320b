"""The accuracy-eps curve and its integral. The only place where the formulas exist."""

import math
from collections.abc import Sequence

import numpy as np

from .class_indices import check_classes
from .threat_distributions import ThreatDistribution


def parse_number(value: float | str) -> float:
    """A number, or the text of one or of a fraction.

    Raises:
        ValueError: neither.

    >>> parse_number("51/255"), parse_number(0.2)
    (0.2, 0.2)
    """
    try:
        if isinstance(value, str):
            numerator, slash, denominator = value.partition("/")
            return float(numerator) / (float(denominator) if slash else 1.0)
        if not isinstance(value, (bool, np.bool_)):
            return float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        pass
    raise ValueError(f"{value!r} is neither a number nor a fraction such as '4/255'.")


def check_epsilons(epsilons: Sequence[float | str]) -> np.ndarray:
    """Return the grid as float64 (E,), from numbers or fractions ("4/255").

    Raises:
        ValueError: no list, empty, not finite, not starting at 0, or not strictly increasing.
    """
    grid = _numbers(epsilons, "epsilons")
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
        ValueError: no samples, shapes that do not match, or what is no class (`check_classes`).
    """
    predictions, references = check_classes(predictions, references)
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


def grid_weights(distribution: ThreatDistribution, epsilons: Sequence[float]) -> np.ndarray:
    """Weights (E,), summing to 1, whose product with the accuracies is their mean over the distribution of eps.

    Exact for the piecewise-linear curve through the points: each weight is the mean of the hat function of its point.
    For `Uniform` this is the trapezoid rule.

    Args:
        distribution: of eps, on [0, eps_g].
        epsilons: (E,), increasing from 0 to eps_g, in pixel units of [0, 1].

    Raises:
        ValueError: not such a grid.

    >>> from hf_robust_ft.metrics.robustness.threat_distributions import Dirac, Uniform
    >>> grid_weights(Uniform(eps_g=4.0), [0, 1, 2, 3, 4]).tolist()
    [0.125, 0.25, 0.25, 0.25, 0.125]
    >>> grid_weights(Dirac(1.5, eps_g=2.0), [0, 1, 2]).tolist()
    [0.0, 0.5, 0.5]
    """
    grid, eps_g = check_epsilons(epsilons), distribution.eps_g
    if not math.isclose(grid[-1], eps_g, rel_tol=1e-12):
        raise ValueError(f"The grid must end at the distribution's eps_g={eps_g:g}, got {grid[-1]:g}: change either.")
    ends = np.append(grid[:-1], eps_g)  # no mass is lost where the last eps differs by rounding
    mass = np.maximum(np.diff(distribution.cdf(ends)), 0)
    mean_above_left = np.diff(distribution.partial_mean(ends)) - grid[:-1] * mass
    right = np.clip(mean_above_left / np.diff(grid), 0, mass)  # rounding would leave [0, mass]
    weights = np.append(mass - right, 0) + np.insert(right, 0, 0)
    weights[0] += distribution.cdf(0.0)
    return weights


def expected_robustness(
    accuracies: Sequence[float], epsilons: Sequence[float | str], weights: Sequence[float | str] | None = None
) -> float:
    """The mean of Acc_eps over eps: the area under the accuracy-eps curve over eps_g (arXiv 2509.23325).

    Args:
        accuracies: (E,), accuracy at each eps, in [0, 1].
        epsilons: (E,), increasing from 0 to eps_g.
        weights: (E,), non-negative and summing to 1 up to rounding (1e-5, which is divided out), for an eps that is
            not uniform on [0, eps_g], e.g. of `grid_weights`; the default is the trapezoid rule,
            exact for the piecewise-linear curve through the points.

    Raises:
        ValueError: lengths that differ, accuracies outside [0, 1], or weights that are not a distribution.

    The paper's form, 5 points at 4/255:

    >>> expected_robustness([0.8, 0.7, 0.6, 0.5, 0.4], [0, 1 / 255, 2 / 255, 3 / 255, 4 / 255])
    0.6
    """
    accuracies, grid = np.asarray(accuracies, dtype=np.float64), check_epsilons(epsilons)
    given = trapezoid_weights(grid) if weights is None else _numbers(weights, "weights")
    if accuracies.shape != grid.shape or given.shape != grid.shape:
        raise ValueError(
            f"accuracies {accuracies.shape}, epsilons {grid.shape} and weights {given.shape} must have one length."
        )
    if not ((accuracies >= 0) & (accuracies <= 1)).all():
        raise ValueError(f"accuracies must be shares in [0, 1], not percentages; got {accuracies.tolist()}.")
    if (given < 0).any() or not np.isclose(given.sum(), 1):
        raise ValueError(f"weights must be non-negative and sum to 1, got {given.tolist()}, sum {given.sum():g}.")
    if weights is not None:
        given = given / given.sum()
    # Rounded at the last digits, which only hold summation error.
    return round(float(given @ accuracies), 12)


def survival_expectation(distribution: ThreatDistribution, smallest_eps: Sequence[float]) -> float:
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


def _numbers(values: Sequence[float | str], name: str) -> np.ndarray:
    """A list of numbers or fractions as float64 (E,)."""
    if isinstance(values, str) or not np.iterable(values) or len(values) == 0:
        raise ValueError(f"{name} must be a non-empty list of numbers or fractions such as '4/255', got {values!r}.")
    try:
        found = np.array([parse_number(value) for value in values])
    except ValueError as error:
        raise ValueError(f"{name} must be numbers or fractions: {error}") from None
    if not np.isfinite(found).all():
        raise ValueError(f"{name} must be finite numbers, got {found.tolist()}.")
    return found
