"""How an APGD run divides its steps between balls of different radii."""

from typing import Any, NamedTuple

from hf_robust_ft.attacks.losses import get_loss


class EpsPhase(NamedTuple):
    """`steps` in a ball of `factor` times eps."""

    factor: float
    steps: int


def eps_phases(config: Any) -> list[EpsPhase]:
    """The phases of an `APGD` with `larger_eps`, the larger balls' steps rounded down.

    Those of arXiv 2103.01208; for one label a pixel those of arXiv 2306.12941, 2, 1.5 and 1 eps.

    >>> from hf_robust_ft.attacks import APGD
    >>> [tuple(phase) for phase in eps_phases(APGD(steps=40, larger_eps=True))]
    [(3, 12), (2, 12), (1, 16)]
    >>> [tuple(phase) for phase in eps_phases(APGD(steps=40))]
    [(1, 40)]
    >>> [tuple(phase) for phase in eps_phases(APGD(steps=40, larger_eps=True, loss="masked_ce"))]
    [(2, 12), (1.5, 12), (1, 16)]
    """
    larger = 3 * config.steps // 10 if config.larger_eps else 0
    last = EpsPhase(1, config.steps - 2 * larger)
    factors = (2, 1.5) if get_loss(config.loss).dense else (3, 2)
    return [*(EpsPhase(factor, larger) for factor in factors), last] if larger else [last]
