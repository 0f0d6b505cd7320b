"""The geometry of perturbations: balls of a norm and a radius, intersected with the images' range [0, 1]."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


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

    def scaled(self, factor: float) -> "Ball":
        """The balls of `factor` times the radius."""
        return self if factor == 1 else type(self)(self.center, self._radius * factor)

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
        """The norm of `x - center` per image, (N,) float64: never below what real arithmetic gives.

        On the CPU where the device has no float64 (MPS).
        """
        device = "cpu" if x.device.type == "mps" else x.device
        change = x.to(device, torch.float64) - self.center.to(device, torch.float64)
        return torch.linalg.vector_norm(change.flatten(1), self.order, dim=1) * (1 + _DISTANCE_MARGIN)

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

    order = math.inf

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


# L2 and L1 norms are sums, whose float32 rounding this share of the radius allows for.
_SUM_MARGIN = 4e-6
# The same for a distance, which is summed in float64: in whatever order it is summed again, it is no larger.
_DISTANCE_MARGIN = 1e-12


class L2Ball(Ball):
    """At most `eps` in Euclidean distance."""

    order = 2

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


class L1Ball(Ball):
    """At most `eps` in the sum of absolute differences (Croce & Hein 2021, arXiv 2103.01208)."""

    order = 1

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


def _total(values: Tensor) -> Tensor:
    """The sum per image, (N, 1, 1, 1).

    A graph compiled for the CPU adds up in order, where PyTorch adds sums of parts: in float32 the rounding would grow
    with the number of terms, over 3 x 224 x 224 equal ones to 3e-5, out of the ball. In float64 it costs little there.
    """
    in_order = torch.compiler.is_compiling() and values.device.type == "cpu"
    total = values.flatten(1).sum(1, dtype=torch.float64 if in_order else values.dtype)
    return total.to(values.dtype).view(-1, *[1] * (values.ndim - 1))


def _unit(direction: Tensor) -> Tensor:
    """Each image's direction at Euclidean length 1; a zero direction stays zero, however small or large others are."""
    largest = direction.abs().flatten(1).amax(1).view(-1, *[1] * (direction.ndim - 1))
    scaled = direction / torch.where(largest > 0, largest, 1)
    return scaled / _total(scaled.square()).sqrt().clamp(min=1)


BALLS: dict[str, type[Ball]] = {"Linf": LinfBall, "L2": L2Ball, "L1": L1Ball}
