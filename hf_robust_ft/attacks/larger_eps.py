"""How an APGD run divides its steps between balls of different radii."""

from typing import Any, NamedTuple


class EpsPhase(NamedTuple):
    """`steps` in a ball of `factor` times eps."""

    factor: int
    steps: int


def eps_phases(config: Any) -> list[EpsPhase]:
    """The phases of an `APGD`: with `larger_eps` those of arXiv 2103.01208, the larger balls' steps rounded down.

    >>> from hf_robust_ft.attacks import APGD
    >>> [tuple(phase) for phase in eps_phases(APGD(steps=40, larger_eps=True))]
    [(3, 12), (2, 12), (1, 16)]
    >>> [tuple(phase) for phase in eps_phases(APGD(steps=40))]
    [(1, 40)]
    """
    larger = 3 * config.steps // 10 if config.larger_eps else 0
    last = EpsPhase(1, config.steps - 2 * larger)
    return [EpsPhase(3, larger), EpsPhase(2, larger), last] if larger else [last]
