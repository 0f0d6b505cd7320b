"""Which perturbations an attacker may make: a norm and a radius.

Every `eps` in this package is a radius in pixel units of [0, 1].
"""

import math
from dataclasses import dataclass
from numbers import Real

from torch import Tensor

from hf_robust_ft.attacks.balls import BALLS, Ball


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
            meant = [f" Did you mean {name}?" for name in BALLS if name.lower() == str(self.norm).lower()]
            raise ValueError(f"Unknown norm {self.norm!r}.{''.join(meant)} Valid norms: {', '.join(BALLS)}.")
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
