"""Which perturbations an attacker may make: a norm, a radius, and the geometry of the ball they define.

Every `eps` in this package is a radius in pixel units of [0, 1].
"""

import math
import struct
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
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"eps={eps!r} must be finite and not negative. {how}")
    return value


def format_eps(eps: float) -> str:
    """Write a radius the way papers do: in 255ths where it is one, else as a decimal.

    >>> format_eps(4 / 255), format_eps(0.03)
    ('4/255', '0.03')
    """
    in_255ths = round(eps * 255)
    if math.isclose(eps * 255, in_255ths, rel_tol=1e-6, abs_tol=1e-9):
        return "0" if in_255ths == 0 else f"{in_255ths}/255"
    return f"{eps:.6g}"


def default_epsilons(eps: float) -> list[float]:
    """The paper's evaluation grid: 0, then every 1/255 up to `eps`, which always ends the grid.

    >>> [format_eps(e) for e in default_epsilons(2 / 255)]
    ['0', '1/255', '2/255']
    """
    below = [k / 255 for k in range(math.ceil(eps * 255)) if not math.isclose(k / 255, eps, rel_tol=1e-6)]
    return [*(below or [0.0]), eps] if eps > 0 else [0.0]


def _float32_floor(value: float) -> float:
    """The largest float32 not above `value`, so that rounding never widens a ball."""
    (rounded,) = struct.unpack("<f", struct.pack("<f", value))
    if rounded <= value:
        return rounded
    (bits,) = struct.unpack("<I", struct.pack("<f", rounded))
    return struct.unpack("<f", struct.pack("<I", bits - 1))[0]


class LinfBall:
    """Images within `eps` of `center` in every pixel, intersected with [0, 1].

    The box is rounded inwards (by at most one float32 spacing of the pixel value), so that
    `(x - center).abs().max() <= eps` holds exactly for every projected x, in float32 and in real arithmetic.

    Args:
        center: (N, C, H, W) float32 pixels in [0, 1].
        eps: radius, or one per image as a tensor (N,).
    """

    def __init__(self, center: Tensor, eps: float | Tensor):
        if isinstance(eps, Tensor):
            narrow = eps.to(center.device, center.dtype)
            narrow = torch.where(narrow > eps.to(center.device), torch.nextafter(narrow, narrow * 0), narrow)
            self.eps = narrow.view(-1, *[1] * (center.ndim - 1))
        else:
            self.eps = torch.full((1,) * center.ndim, _float32_floor(eps), dtype=center.dtype, device=center.device)
        below, above = (torch.full((), v, dtype=center.dtype, device=center.device) for v in (-1.0, 2.0))
        self.lower = torch.minimum(torch.nextafter(center - self.eps, above).clamp(min=0), center)
        self.upper = torch.maximum(torch.nextafter(center + self.eps, below).clamp(max=1), center)
        self.center = center

    def project(self, x: Tensor) -> Tensor:
        """The point of the ball nearest to `x`, of the shape of `center`."""
        return torch.minimum(torch.maximum(x, self.lower), self.upper)

    def random_start(self, generator: torch.Generator | None = None) -> Tensor:
        """A point drawn uniformly from the box, of the shape of `center`."""
        # Drawn where the generator lives: `rand_like` takes none.
        noise = torch.rand(
            self.center.shape,
            generator=generator,
            dtype=self.center.dtype,
            device=self.center.device if generator is None else generator.device,
        )
        return self.project(torch.lerp(self.lower, self.upper, noise.to(self.center.device)))

    @staticmethod
    def ascent_step(x: Tensor, gradient: Tensor, step_size: Tensor) -> Tensor:
        """The steepest ascent of length `step_size` (N, 1, 1, 1) under the norm, not projected."""
        return x + step_size * gradient.sign()

    def distance(self, x: Tensor) -> Tensor:
        """The norm of `x - center` per image, (N,)."""
        return (x - self.center).abs().flatten(1).amax(1)


BALLS = {"Linf": LinfBall}


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
        if self.norm not in BALLS:
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

    def ball(self, center: Tensor, eps: float | Tensor | None = None) -> LinfBall:
        """The ball around `center` (N, C, H, W), of radius `eps` if given (a float or one per image, (N,))."""
        return BALLS[self.norm](center, self.eps if eps is None else eps)
