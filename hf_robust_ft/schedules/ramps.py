"""Ramps: alpha as a pure function of progress alone, 0 before it and the whole budget after it."""

import math
from collections.abc import Sequence
from itertools import pairwise


def none(progress: float) -> float:
    """Never an attack: standard fine-tuning, of a model that is measured at eps_g all the same.

    >>> {none(t) for t in (0.0, 0.5, 1.0)}
    {0.0}
    """
    return 0.0


def constant(progress: float) -> float:
    """The whole budget from the first step: standard robust fine-tuning, the paper's *fix* (arXiv 2509.23325)."""
    return 1.0


def linear_warmup(progress: float, end: float = 0.74) -> float:
    """A linear ramp from 0 at the first step to the whole budget at `end`.

    The light recipe's warm-up (Debenedetti et al., arXiv 2209.07399: 10 of 100 epochs, `end=0.1`), and with `end=1` and
    granularity "step" the growth over all of training of PGDLS (Ding et al. 2020).

    >>> [linear_warmup(t, end=0.5) for t in (0.0, 0.25, 0.5, 1.0)]
    [0.0, 0.5, 1.0, 1.0]
    """
    return hinge(progress, start=0.0, end=end)


def hinge(progress: float, start: float = 0.24, end: float = 0.74) -> float:
    """Nothing before `start` (T1), a linear ramp up to `end` (T2), then the whole budget (arXiv 2509.23325).

    `start=end=0` is `constant` (RFT-fix), `start=0` is `linear_warmup`.

    >>> [hinge(epoch / 50) for epoch in (11, 12, 24.5, 37)]
    [0.0, 0.0, 0.5, 1.0]
    """
    if progress >= end:
        return 1.0
    if progress <= start:
        return 0.0
    return (progress - start) / (end - start)


def cosine(progress: float, start: float = 0.24, end: float = 0.74) -> float:
    """The hinge with half a cosine wave for a ramp: no corner at either end.

    The shape is that of SGDR's learning rate (Loshchilov & Hutter 2017, arXiv 1608.03983); for eps, our own variation.

    >>> [round(cosine(t, 0.0, 1.0), 4) for t in (0.0, 0.25, 0.5, 1.0)]
    [0.0, 0.1464, 0.5, 1.0]
    """
    return (1 - math.cos(math.pi * hinge(progress, start, end))) / 2


def smoothed_hinge(
    progress: float, start: float = 0.24, end: float = 0.74, bend: float = 0.25, power: float = 4.0
) -> float:
    """The hinge with a start that has no corner (C1): auto_LiRPA's SmoothedScheduler.

    The first `bend` of the ramp grows as a `power` of the time since `start`; the rest is the straight line to the
    whole budget at `end` that continues its value and its slope. `bend=0` is `hinge`.

    Args:
        bend: share of the ramp that is curved, in [0, 1].
        power: exponent of the curved part, above 1.

    Raises:
        ValueError: `bend` or `power` out of range.

    >>> [round(smoothed_hinge(t, 0.0, 1.0), 4) for t in (0.0, 0.125, 0.25, 0.625, 1.0)]
    [0.0, 0.0048, 0.0769, 0.5385, 1.0]
    """
    if not 0 <= bend <= 1 or not 1 < power < math.inf:
        raise ValueError(f"smoothed_hinge needs bend in [0, 1] and power above 1, got bend={bend}, power={power}.")
    ramp = hinge(progress, start, end)
    if bend == 0 or ramp == 0:
        return ramp
    slope = power / ((1 - bend) * power + bend)
    if ramp < bend:
        return slope / power * bend * (ramp / bend) ** power
    return 1 - slope * (1 - ramp)


def piecewise_linear(progress: float, points: str | Sequence[Sequence[float]] = "0.24:0,0.74:1") -> float:
    """Straight lines between given points, level before the first and after the last.

    Args:
        points: pairs (progress, alpha), as such or written "0.24:0,0.74:1"; both in [0, 1], progress increasing.

    Raises:
        ValueError: points that are not that.

    >>> [piecewise_linear(t, "0.2:0,0.4:0.5,1:1") for t in (0.1, 0.4, 0.7, 1.0)]
    [0.0, 0.5, 0.75, 1.0]
    """
    corners = _parse_points(points)
    if progress <= corners[0][0]:
        return corners[0][1]
    for (left, low), (right, high) in pairwise(corners):
        if progress <= right:
            share = (progress - left) / (right - left)
            return low * (1 - share) + high * share  # exact at both ends, unlike low + (high - low) * share
    return corners[-1][1]


def exponential(progress: float, start: float = 0.24, end: float = 0.74, rate: float = 3.0) -> float:
    """The hinge with an exponential ramp, (e^(rate s) - 1) / (e^rate - 1): slow at first, then fast.

    Our own variation: we know of no published result. A negative `rate` is fast at first, 0 is `hinge`.

    Args:
        rate: by how many factors of e the slope grows over the ramp, in [-50, 50].

    Raises:
        ValueError: `rate` out of range.

    >>> [round(exponential(t, 0.0, 1.0), 4) for t in (0.0, 0.5, 1.0)]
    [0.0, 0.1824, 1.0]
    """
    if not -50 <= rate <= 50:
        raise ValueError(f"exponential needs a rate in [-50, 50], got {rate}.")
    ramp = hinge(progress, start, end)
    return math.expm1(rate * ramp) / math.expm1(rate) if rate else ramp


def _parse_points(points: str | Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    try:
        pairs = [entry.split(":") for entry in points.split(",")] if isinstance(points, str) else points
        corners = [(float(progress), float(alpha)) for progress, alpha in pairs]
    except (TypeError, ValueError):
        corners = []
    in_range = all(0 <= value <= 1 for pair in corners for value in pair)
    rising = all(left[0] < right[0] for left, right in pairwise(corners))
    if not corners or not in_range or not rising:
        raise ValueError(
            f"points={points!r} are not pairs progress:alpha in [0, 1] with increasing progress, e.g. "
            "'0.24:0,0.5:0.3,0.74:1'."
        )
    return corners
