"""Sampled eps: drawn anew from a generator that is a pure function of (seed, step), so a resumed run needs no state.

Every process draws the same. Granularity "epoch" draws once an epoch, as arXiv 2509.23325 does; "step" at every step.
"""

import math
from random import Random


def uniform(progress: float, *, seed: int, step: int) -> float:
    """eps uniform in [0, eps_g]: a baseline of arXiv 2509.23325.

    >>> uniform(0.5, seed=0, step=3) == uniform(0.9, seed=0, step=3) != uniform(0.5, seed=0, step=4)
    True
    """
    return _generator(seed, step).random()


def beta(progress: float, a: float, b: float, *, seed: int, step: int) -> float:
    """eps = eps_g * Beta(a, b), which arXiv 2509.23325 cites without its parameters: give your own.

    Args:
        a: above 0; the mean of alpha is a / (a + b).
        b: above 0; `a=b=1` is `uniform`, draw for draw.

    Raises:
        ValueError: a parameter that is not positive.
    """
    if not (0 < a < math.inf and 0 < b < math.inf):
        raise ValueError(f"beta needs a and b above 0, got a={a}, b={b}.")
    if a == b == 1:
        return uniform(progress, seed=seed, step=step)
    return _generator(seed, step).betavariate(a, b)


def _generator(seed: int, step: int) -> Random:
    return Random(f"{seed} {step}")  # a string is hashed: neighbouring seeds and steps are unrelated
