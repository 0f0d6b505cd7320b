"""Which perturbations an attacker may make: a norm, a radius, and the geometry of the ball they define.

Every `eps` in this package is a radius in pixel units of [0, 1].
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor


def parse_eps(eps: float | str) -> float:
    """Read a radius given as a number or as a fraction string.

    Raises:
        ValueError: not a finite number >= 0, or not of the form "4/255" or "0.0157".

    >>> parse_eps("4/255") == 4 / 255
    True
    """
    how = "Give eps in pixel units of [0, 1], as a number (0.0157) or a fraction ('4/255')."
    if isinstance(eps, bool) or not isinstance(eps, (Real, str)):
        raise ValueError(f"eps must be a number or a fraction string, got {eps!r} of type {type(eps).__name__}. {how}")
    try:
        if isinstance(eps, str) and "/" in eps:
            numerator, denominator = eps.split("/")
            value = float(numerator) / float(denominator)
        else:
            value = float(eps)
    except ValueError:
        raise ValueError(f"eps={eps!r} is neither a number nor a fraction. {how}") from None
    except ZeroDivisionError:
        raise ValueError(f"eps={eps!r} divides by zero. {how}") from None
    except OverflowError:  # a whole number or a fraction beyond any float
        value = math.inf
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"eps={eps!r} must be finite and not negative. {how}")
    return value


def format_eps(eps: float) -> str:
    """Write a radius the way papers do: in 255ths below 1 where it is a whole number of them, else as a decimal.

    >>> format_eps(4 / 255), format_eps(0.03), format_eps(12.0)
    ('4/255', '0.03', '12')
    """
    in_255ths = round(eps * 255)
    if eps < 1 and math.isclose(eps * 255, in_255ths, rel_tol=1e-6, abs_tol=1e-9):
        return "0" if in_255ths == 0 else f"{in_255ths}/255"
    return f"{eps:.6g}"


def readable_eps(eps: float, norm: str = "Linf") -> str:
    """A radius for people, to three digits: under Linf in 255ths, as papers have them, also where none is whole.

    >>> readable_eps(0.08 / 255), readable_eps(4 / 255), readable_eps(0.5, "L2")
    ('0.08/255', '4/255', '0.5')
    """
    return f"{255 * eps:.3g}/255" if norm == "Linf" and eps > 0 else f"{eps:.3g}"


def default_epsilons(eps: float, norm: str = "Linf") -> list[float]:
    """The evaluation grid: under Linf the paper's, every 1/255 up to `eps`, which always ends the grid.

    For the other norms, which the paper does not measure: 0 and 8 equal steps.

    >>> [format_eps(e) for e in default_epsilons(2 / 255)]
    ['0', '1/255', '2/255']
    """
    if norm != "Linf":
        return [eps * k / 8 for k in range(8)] + [eps] if eps > 0 else [0.0]
    below = [k / 255 for k in range(math.ceil(eps * 255)) if not math.isclose(k / 255, eps, rel_tol=1e-6)]
    return [*(below or [0.0]), eps] if eps > 0 else [0.0]


def _float32_floor(value: float) -> float:
    """The largest float32 not above `value` (0 below the normal range), so that rounding never widens a ball."""
    if value < 2**-126:
        return 0.0
    mantissa, exponent = math.frexp(value)
    return math.ldexp(math.floor(mantissa * 2**24), exponent - 24)


class Ball:
    """Images within `eps` of `center` under a norm, intersected with [0, 1].

    Everything stays on the device of `center`: no method waits for it. Whatever `project` and `random_start` return
    is inside the ball as real arithmetic measures it, not only up to rounding.

    Args:
        center: (N, C, H, W) float32 pixels in [0, 1].
        eps: radius, or one per image as a tensor (N,).
    """

    def __init__(self, center: Tensor, eps: float | Tensor):
        self.center, self._radius = center, eps
        if isinstance(eps, Tensor):
            narrow = eps.to(center.device, center.dtype)
            narrow = torch.where(narrow > eps.to(center.device), torch.nextafter(narrow, narrow * 0), narrow)
            self.eps = narrow.view(-1, *[1] * (center.ndim - 1))
        else:
            self.eps = torch.full((1,) * center.ndim, _float32_floor(eps), dtype=center.dtype, device=center.device)

    def rows(self, index: Tensor) -> "Ball":
        """The balls of some of the images."""
        radius = self._radius[index] if isinstance(self._radius, Tensor) else self._radius
        return type(self)(self.center[index], radius)

    def project(self, x: Tensor) -> Tensor:
        """The point of the ball nearest to `x` in Euclidean distance, of the shape of `center`."""
        raise NotImplementedError

    def random_start(self, generator: torch.Generator | None = None) -> Tensor:
        """A random point of the ball, of the shape of `center`."""
        return self.project(self.center + self.eps * _unit(self._draw(torch.randn, generator)))

    def ascent_step(self, x: Tensor, gradient: Tensor, step_size: Tensor) -> Tensor:
        """The steepest ascent of length `step_size` (N, 1, 1, 1) under the norm, not projected."""
        raise NotImplementedError

    def distance(self, x: Tensor) -> Tensor:
        """The norm of `x - center` per image, (N,)."""
        raise NotImplementedError

    def _draw(self, distribution: Callable, generator: torch.Generator | None) -> Tensor:
        # Drawn where the generator lives: the `_like` functions take none.
        device = self.center.device if generator is None else generator.device
        noise = distribution(self.center.shape, generator=generator, dtype=self.center.dtype, device=device)
        return noise.to(self.center.device)

    def _moved(self, perturbation: Tensor) -> Tensor:
        """`center + perturbation`, each pixel rounded towards its center."""
        return torch.nextafter((self.center + perturbation).clamp(0, 1), self.center)


class LinfBall(Ball):
    """At most `eps` in every pixel: a box. It is rounded inwards by at most one float32 spacing of the pixel value."""

    def __init__(self, center: Tensor, eps: float | Tensor):
        super().__init__(center, eps)
        below, above = (torch.full((), v, dtype=center.dtype, device=center.device) for v in (-1.0, 2.0))
        self.lower = torch.minimum(torch.nextafter(center - self.eps, above).clamp(min=0), center)
        self.upper = torch.maximum(torch.nextafter(center + self.eps, below).clamp(max=1), center)

    def project(self, x: Tensor) -> Tensor:
        return torch.clamp(x, self.lower, self.upper)

    def random_start(self, generator: torch.Generator | None = None) -> Tensor:
        """A point drawn uniformly from the box."""
        return self.project(torch.lerp(self.lower, self.upper, self._draw(torch.rand, generator)))

    def ascent_step(self, x: Tensor, gradient: Tensor, step_size: Tensor) -> Tensor:
        return torch.addcmul(x, step_size, gradient.sign())

    def distance(self, x: Tensor) -> Tensor:
        return (x - self.center).abs().flatten(1).amax(1)


# L2 and L1 norms are sums, whose float32 rounding this share of the radius allows for.
_SUM_MARGIN = 4e-6


class L2Ball(Ball):
    """At most `eps` in Euclidean distance."""

    def project(self, x: Tensor) -> Tensor:
        """Scale the perturbation, clip it to [0, 1], and give what clipping freed to the pixels that are not clipped.

        Each round solves for the scale with the clipped pixels of the round before. The scale only grows and the
        point never leaves the ball, so stopping after a few rounds is safe; more than five change nothing measurable.
        """
        target = self.eps * (1 - _SUM_MARGIN)
        wanted = x - self.center
        room = torch.where(wanted > 0, 1 - self.center, self.center)
        size, squared = wanted.abs(), wanted.square()
        scale = (target / _total(squared).sqrt().clamp(min=1e-30)).clamp(max=1)
        for _ in range(4):
            clipped = size * scale > room
            free = torch.where(clipped, 0.0, squared)
            left = target.square() - _total(torch.where(clipped, room.square(), 0.0))
            grown = (left.clamp(min=0) / _total(free).clamp(min=1e-30)).sqrt()
            scale = torch.maximum(scale, grown.clamp(max=1))
        return self._moved(wanted * scale)

    def ascent_step(self, x: Tensor, gradient: Tensor, step_size: Tensor) -> Tensor:
        return x + step_size * _unit(gradient)

    def distance(self, x: Tensor) -> Tensor:
        return _total((x - self.center).square()).sqrt().flatten()


class L1Ball(Ball):
    """At most `eps` in the sum of absolute differences (Croce & Hein 2021, arXiv 2103.01208)."""

    def project(self, x: Tensor) -> Tensor:
        """Shrink every pixel's change by one threshold, limited to the room that pixel has.

        The threshold is the root of a decreasing piecewise-linear function: Newton's method inside a bracket, a fixed
        number of rounds. Rounds left over are made up for by scaling, so the result is always inside the ball.
        """
        target = self.eps * (1 - _SUM_MARGIN)
        wanted = x - self.center
        room = torch.where(wanted > 0, 1 - self.center, self.center)
        size = wanted.abs()
        low, high = torch.zeros_like(target).expand(len(x), 1, 1, 1), size.flatten(1).amax(1).view(-1, 1, 1, 1)
        threshold = low
        for _ in range(24):
            shrunk = size - threshold
            excess = _total(torch.minimum(shrunk.clamp(min=0), room)) - target
            slope = _total(((shrunk > 0) & (shrunk < room)).to(x.dtype))
            low, high = torch.where(excess > 0, threshold, low), torch.where(excess > 0, high, threshold)
            newton = threshold + excess / slope.clamp(min=1)
            # Newton's step says nothing on the flat stretches, where every change left is at its limit.
            trusted = (slope > 0) & (newton > low) & (newton < high)
            threshold = torch.where(trusted, newton, (low + high) / 2)
        change = torch.minimum((size - threshold).clamp(min=0), room)
        whole = torch.minimum(size, room)
        change = torch.where(_total(whole) <= target, whole, change)
        change = change * (target / _total(change).clamp(min=1e-30)).clamp(max=1)
        return self._moved(change * wanted.sign())

    def ascent_step(self, x: Tensor, gradient: Tensor, step_size: Tensor, share: Tensor | None = None) -> Tensor:
        """A step spread evenly over the `share` (N,) of the pixel values with the largest gradients.

        Without `share` on a single pixel value, the steepest ascent under the L1 norm.
        """
        size = gradient.abs().flatten(1)
        count = size.shape[1]
        if share is None:
            smallest = size.amax(1, keepdim=True)
        else:
            index = ((1 - share) * count).clamp(0, count - 1).long()
            smallest = size.sort(1).values.gather(1, index[:, None])
        sign = torch.where(size >= smallest, gradient.flatten(1).sign(), 0.0).view_as(x)
        return x + step_size * sign / _total(sign.abs()).clamp(min=1)

    def distance(self, x: Tensor) -> Tensor:
        return _total((x - self.center).abs()).flatten()


def _total(values: Tensor) -> Tensor:
    """The sum per image, (N, 1, 1, 1)."""
    return values.flatten(1).sum(1).view(-1, *[1] * (values.ndim - 1))


def _unit(direction: Tensor) -> Tensor:
    """Each image's direction at Euclidean length 1; a zero direction stays zero, however small or large others are."""
    largest = direction.abs().flatten(1).amax(1).view(-1, *[1] * (direction.ndim - 1))
    scaled = direction / torch.where(largest > 0, largest, 1)
    return scaled / _total(scaled.square()).sqrt().clamp(min=1)


BALLS: dict[str, type[Ball]] = {"Linf": LinfBall, "L2": L2Ball, "L1": L1Ball}


@dataclass(frozen=True)
class ThreatModel:
    """A norm and a budget, e.g. `ThreatModel("Linf", "4/255")`.

    Args:
        norm: one of `BALLS`.
        eps: radius in pixel units of [0, 1], as a number or a fraction string; stored as a float.

    Raises:
        ValueError: unknown norm, unreadable eps, or a Linf eps above 1 (4 for 4/255).

    >>> print(ThreatModel("Linf", "4/255"))
    Linf 4/255
    """

    norm: str = "Linf"
    eps: float | str = "4/255"

    def __post_init__(self):
        if not isinstance(self.norm, str) or self.norm not in BALLS:
            raise ValueError(f"Unknown norm {self.norm!r}. Valid norms: {', '.join(BALLS)}.")
        eps = parse_eps(self.eps)
        if self.norm == "Linf" and eps > 1:
            raise ValueError(
                f"eps={self.eps!r} under Linf is more than the whole pixel range: eps is in pixel units of [0, 1]. "
                f"Did you mean eps='{format(eps, 'g')}/255'?"
            )
        object.__setattr__(self, "eps", eps)

    def __str__(self) -> str:
        return f"{self.norm} {format_eps(self.eps)}"

    def ball(self, center: Tensor, eps: float | Tensor | None = None) -> Ball:
        """The ball around `center` (N, C, H, W), of radius `eps` if given (a float or one per image, (N,))."""
        return BALLS[self.norm](center, self.eps if eps is None else eps)
