"""How likely each budget eps is: the distribution over [0, eps_g] that expected robustness averages over.

Every eps is in pixel units of [0, 1]. `evaluate.load` copies this folder alone, so nothing here imports from the
rest of the package.
"""

import math
from dataclasses import dataclass, fields
from numbers import Real

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betainc, erfcx, ndtr


class ThreatDistribution:
    """A distribution of eps on [0, eps_g]: what the integrals over the accuracy-eps curve need of it.

    `x` is an eps, or an array of them of any shape, which is also the shape of the result; infinities are allowed.
    """

    eps_g: float

    def __post_init__(self):
        for field in fields(self):
            if field.type is not float:
                continue
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
                raise ValueError(f"{type(self).__name__} needs {field.name} to be a finite number, got {value!r}.")
            object.__setattr__(self, field.name, float(value))
        if self.eps_g <= 0:
            raise ValueError(f"{type(self).__name__} needs an eps_g above 0, the largest budget; got {self.eps_g}.")

    def cdf(self, x: ArrayLike) -> np.ndarray:
        """P(eps <= x), right-continuous."""
        raise NotImplementedError

    def cdf_below(self, x: ArrayLike) -> np.ndarray:
        """P(eps < x), the left limit of `cdf`: the same where no single eps has mass of its own."""
        return self.cdf(x)

    def partial_mean(self, x: ArrayLike) -> np.ndarray:
        """E[eps; eps <= x], the mean of eps counted as 0 where it is above x."""
        raise NotImplementedError

    def _inside(self, x: ArrayLike) -> np.ndarray:
        return np.clip(np.asarray(x, dtype=np.float64), 0, self.eps_g)


@dataclass(frozen=True)
class Uniform(ThreatDistribution):
    """Every eps of [0, eps_g] alike, the default of expected robustness (arXiv 2509.23325).

    Raises:
        ValueError: eps_g not finite and above 0.

    >>> print(Uniform(4 / 255))
    uniform on [0, 4/255]
    """

    eps_g: float

    def __str__(self) -> str:
        return f"uniform on [0, {_format_eps(self.eps_g)}]"

    def cdf(self, x: ArrayLike) -> np.ndarray:
        return self._inside(x) / self.eps_g

    def partial_mean(self, x: ArrayLike) -> np.ndarray:
        return self.cdf(x) * self._inside(x) / 2


@dataclass(frozen=True)
class Beta(ThreatDistribution):
    """eps_g times a Beta(a, b) variable: small eps are likelier for a < b, Beta(1, 1) is uniform.

    Raises:
        ValueError: a, b or eps_g not finite and above 0, or a or b above 1e300.

    >>> print(Beta(2, 5, 4 / 255))
    beta(2, 5) on [0, 4/255]
    """

    a: float
    b: float
    eps_g: float

    def __post_init__(self):
        super().__post_init__()
        if not (0 < self.a <= 1e300 and 0 < self.b <= 1e300):  # a + b must not overflow
            raise ValueError(f"Beta needs a and b above 0 and at most 1e300, got a={self.a}, b={self.b}.")

    def __str__(self) -> str:
        return f"beta({self.a:g}, {self.b:g}) on [0, {_format_eps(self.eps_g)}]"

    def cdf(self, x: ArrayLike) -> np.ndarray:
        return betainc(self.a, self.b, self._inside(x) / self.eps_g)

    def partial_mean(self, x: ArrayLike) -> np.ndarray:
        mean = self.eps_g / (1 + self.b / self.a)
        return mean * betainc(self.a + 1, self.b, self._inside(x) / self.eps_g)


@dataclass(frozen=True)
class TruncatedNormal(ThreatDistribution):
    """A normal variable of the given mean and std (before truncation), on condition that it lies in [0, eps_g].

    The mean may lie far outside [0, eps_g], where the plain formula divides two vanished numbers: there the density
    is taken relative to its peak on [0, eps_g]. For a std within [1e-9, 100] eps_g and a mean within
    [-1000, 1000] eps_g, `cdf` and `partial_mean / eps_g` are off by less than 1e-11.

    Raises:
        ValueError: eps_g not finite and above 0, or a mean or std beyond those limits.

    >>> print(TruncatedNormal(2 / 255, 1 / 255, 4 / 255))
    normal(mean 2/255, std 1/255) truncated to [0, 4/255]
    """

    mean: float
    std: float
    eps_g: float

    def __post_init__(self):
        super().__post_init__()
        if not 1e-9 <= self.std / self.eps_g <= 100 or abs(self.mean) / self.eps_g > 1000:
            raise ValueError(
                f"TruncatedNormal needs, with eps_g={self.eps_g:g}, a std above 0 and within [1e-9, 100] eps_g and a "
                f"mean within [-1000, 1000] eps_g, got mean={self.mean:g} and std={self.std:g}: beyond, float64 loses "
                "too many digits. Take dirac for a narrower one, uniform for a wider one."
            )

    def __str__(self) -> str:
        mean, std, eps_g = (_format_eps(eps) for eps in (self.mean, self.std, self.eps_g))
        return f"normal(mean {mean}, std {std}) truncated to [0, {eps_g}]"

    def cdf(self, x: ArrayLike) -> np.ndarray:
        x = self._inside(x)
        if self.mean > self.eps_g:
            return 1 - self._mirrored().cdf(self.eps_g - x)
        return self._mass(x) / self._mass(self.eps_g)

    def partial_mean(self, x: ArrayLike) -> np.ndarray:
        x = self._inside(x)
        if self.mean > self.eps_g:
            mirrored, rest = self._mirrored(), self.eps_g - x
            return self.eps_g * self.cdf(x) - mirrored.partial_mean(self.eps_g) + mirrored.partial_mean(rest)
        drop = self._relative_density(0.0) - self._relative_density(x)
        return self.mean * self.cdf(x) + self.std * drop / self._mass(self.eps_g)

    def _mirrored(self) -> "TruncatedNormal":
        """The distribution of eps_g - eps."""
        return TruncatedNormal(self.eps_g - self.mean, self.std, self.eps_g)

    def _relative_density(self, x: ArrayLike) -> np.ndarray:
        """The density at x over its largest value on [0, eps_g], for a mean of at most eps_g."""
        peak = max(self.mean, 0.0)
        # The difference of the two squared z-scores, factored: each may be huge where the difference is not.
        return np.exp(-(x - peak) / self.std * ((x + peak - 2 * self.mean) / self.std) / 2)

    def _mass(self, x: ArrayLike) -> np.ndarray:
        """The integral of `_relative_density` from 0 to x, in units of std."""
        start, end = -self.mean / self.std, (x - self.mean) / self.std
        if start <= 0:
            return math.sqrt(2 * math.pi) * (ndtr(end) - ndtr(start))
        # erfcx is the normal's tail over its density, which does not vanish as the tail does.
        tails = erfcx(start / math.sqrt(2)) - self._relative_density(x) * erfcx(end / math.sqrt(2))
        return math.sqrt(math.pi / 2) * tails


@dataclass(frozen=True)
class Dirac(ThreatDistribution):
    """Always the same eps: Dirac(0, eps_g) gives clean accuracy, Dirac(eps_g, eps_g) adversarial accuracy.

    An eps that differs from eps_g by rounding only (1e-12 of it) is taken for eps_g.

    Raises:
        ValueError: eps outside [0, eps_g], or eps_g not finite and above 0.

    >>> print(Dirac(2 / 255, 4 / 255))
    always 2/255
    """

    eps: float
    eps_g: float

    def __post_init__(self):
        super().__post_init__()
        if math.isclose(self.eps, self.eps_g, rel_tol=1e-12):
            object.__setattr__(self, "eps", self.eps_g)
        if not 0 <= self.eps <= self.eps_g:
            raise ValueError(f"Dirac needs an eps in [0, eps_g] = [0, {self.eps_g:g}], got {self.eps:g}.")

    def __str__(self) -> str:
        return f"always {_format_eps(self.eps)}"

    def cdf(self, x: ArrayLike) -> np.ndarray:
        return np.where(np.asarray(x) >= self.eps, 1.0, 0.0)

    def cdf_below(self, x: ArrayLike) -> np.ndarray:
        return np.where(np.asarray(x) > self.eps, 1.0, 0.0)

    def partial_mean(self, x: ArrayLike) -> np.ndarray:
        return self.eps * self.cdf(x)


@dataclass(frozen=True)
class Weights(ThreatDistribution):
    """Some budgets only, each with a weight: any distribution on finitely many eps.

    Args:
        epsilons: (M,), different ones, in [0, eps_g] and any order; kept in increasing order.
        weights: (M,), not negative; kept divided by their sum.

    An eps that differs from eps_g by rounding only (1e-12 of it) is taken for eps_g.

    Raises:
        ValueError: no eps, one twice or outside [0, eps_g], weights that are negative, not finite or all 0, other
            lengths, or eps_g not finite and above 0.

    >>> print(Weights((2 / 255, 0), (3, 1), 4 / 255))
    0.25 at 0, 0.75 at 2/255
    """

    epsilons: tuple[float, ...]
    weights: tuple[float, ...]
    eps_g: float

    def __post_init__(self):
        super().__post_init__()
        points, weights = (np.array(values, dtype=np.float64) for values in (self.epsilons, self.weights))
        if points.ndim != 1 or points.size == 0 or points.shape != weights.shape:
            raise ValueError(f"Weights needs a weight for each eps, got shapes {points.shape} and {weights.shape}.")
        points[np.isclose(points, self.eps_g, rtol=1e-12, atol=0)] = self.eps_g
        order = np.argsort(points)
        points, weights = points[order], weights[order]
        if not ((points >= 0) & (points <= self.eps_g)).all() or (np.diff(points) == 0).any():
            raise ValueError(
                f"Weights needs eps in [0, eps_g] = [0, {self.eps_g:g}], each eps once; got {points.tolist()}."
            )
        if not (weights >= 0).all() or not 0 < weights.sum() < math.inf:
            raise ValueError(f"Weights must be finite, not negative and not all 0, got {weights.tolist()}.")
        object.__setattr__(self, "epsilons", tuple(points.tolist()))
        object.__setattr__(self, "weights", tuple((weights / weights.sum()).tolist()))

    def __str__(self) -> str:
        pairs = zip(self.weights, self.epsilons, strict=True)
        return ", ".join(f"{weight:g} at {_format_eps(eps)}" for weight, eps in pairs)

    def cdf(self, x: ArrayLike) -> np.ndarray:
        return self._sum_below(x, self.weights, "right") / self._sum_below(math.inf, self.weights, "right")

    def cdf_below(self, x: ArrayLike) -> np.ndarray:
        return self._sum_below(x, self.weights, "left") / self._sum_below(math.inf, self.weights, "right")

    def partial_mean(self, x: ArrayLike) -> np.ndarray:
        return self._sum_below(x, np.multiply(self.weights, self.epsilons), "right")

    def _sum_below(self, x: ArrayLike, values: ArrayLike, side: str) -> np.ndarray:
        """The sum of the values of all eps < x ("left") or <= x ("right")."""
        return np.insert(np.cumsum(values), 0, 0)[np.searchsorted(self.epsilons, x, side=side)]


def _format_eps(eps: float) -> str:
    """In 255ths where it is a whole number of them, as papers write it, else as a decimal."""
    k = round(eps * 255)
    return f"{k}/255" if 0 < abs(k) < 255 and math.isclose(eps * 255, k, rel_tol=1e-6) else f"{eps:g}"
