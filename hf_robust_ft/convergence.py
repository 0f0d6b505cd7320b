"""Attack steps doubled until the accuracy stands still (`attack_steps="auto"`): an accuracy that more steps would not
lower much, beside the one after the first steps, which are the paper's."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hf_robust_ft.attacks import APGD
from hf_robust_ft.confidence_intervals import accuracy_interval
from hf_robust_ft.reports import share_of_each_image
from hf_robust_ft.trust_verdicts import OPENINGS, TrustCheck, verdict

AUTO = "auto"
FIRST_STEPS = 10  # the paper's, so that its number stands beside the converged one
STEPS_LIMIT = 160
SETTLED = 0.01  # accuracy, at every eps of the grid


def parse_attack_steps(steps: int | str, name: str = "attack_steps") -> int | str:
    """A number of attack steps, or "auto".

    Raises:
        ValueError: neither of the two.

    >>> parse_attack_steps("40"), parse_attack_steps("auto")
    (40, 'auto')
    """
    text = str(steps).strip()
    if not isinstance(steps, bool) and (text == AUTO or (text.isascii() and text.isdecimal() and int(text) >= 1)):
        return AUTO if text == AUTO else int(text)
    raise ValueError(
        f"{name} is a whole number of at least 1, or {AUTO!r} for as many as the accuracy needs to settle; got "
        f"{steps!r}."
    )


def check_steps_limit(limit: int, name: str = "attack_steps_limit") -> None:
    """Raise a ValueError unless `limit` leaves room for the first round."""
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < FIRST_STEPS:
        raise ValueError(
            f"{name} is the most steps that attack_steps='auto' may take, a whole number of at least {FIRST_STEPS}; "
            f"got {limit!r}."
        )


def first_attack(attack: APGD, steps: int | str) -> APGD:
    """The attack with `steps`, of "auto" the first round's."""
    return replace(attack, steps=FIRST_STEPS if steps == AUTO else steps)


def rounds_up_to(limit: int) -> list[int]:
    """The steps of each round at most.

    >>> rounds_up_to(100)
    [10, 20, 40, 80]
    """
    steps = [FIRST_STEPS]
    while 2 * steps[-1] <= limit:
        steps.append(2 * steps[-1])
    return steps


@dataclass
class Convergence:
    """The rounds of one evaluation: after each, what the accuracy is and whether another is needed.

    A round attacks what the ones before left standing, with twice their steps. It was the last one where it lowered
    the accuracy by less than one point at every eps of the grid, and by less than half of that accuracy's 95 %
    interval; below 100 images a single image is more than a point.

    Args:
        attack: of the first round.
        epsilons: the grid.
        protocol: a key of `PROTOCOLS`.
        limit: the most steps.
        limit_name: what the user calls it.
    """

    attack: APGD
    epsilons: list[float]
    protocol: str
    limit: int = STEPS_LIMIT
    limit_name: str = "attack_steps_limit"
    rounds: list[dict[str, Any]] = field(default_factory=list)
    settled: bool = False

    def add(self, smallest_epsilons: Sequence[float]) -> None:
        """Enter the smallest fooling eps (N,) of every image after a round."""
        smallest, grid = np.asarray(smallest_epsilons, dtype=np.float64), np.asarray(self.epsilons)
        standing = (smallest[:, None] > grid).sum(0)
        found = {
            "steps": self.attack.steps,
            "adversarial_accuracy": float(standing[-1] / len(smallest)),
            "expected_robustness": float(share_of_each_image(smallest, grid, self.protocol).mean()),
            "accuracies": (standing / len(smallest)).tolist(),
        }
        if self.rounds:
            before = np.rint(np.array(self.rounds[-1]["accuracies"]) * len(smallest)).astype(int)
            self.settled = all(_is_small(*counts, len(smallest)) for counts in zip(before, standing, strict=True))
        elif not standing[1:].any():
            self.settled = True  # nothing is left to attack
        self.rounds.append(found)

    def after(self, smallest_epsilons: Sequence[float]) -> APGD | None:
        """Enter a round as `add` does; the attack of the next one, None where this was the last."""
        self.add(smallest_epsilons)
        steps = 2 * self.attack.steps
        if self.settled or steps > self.limit:
            return None
        self.attack = replace(self.attack, steps=steps)
        return self.attack

    def described(self) -> dict[str, Any]:
        """What a report keeps: `limit`, `settled`, and of each round its steps and scores."""
        return {"limit": self.limit, "settled": self.settled, "rounds": self.rounds}

    def metrics(self) -> dict[str, float]:
        """What a Trainer logs beside the last round's scores, under the same names at each evaluation."""
        first = self.rounds[0]
        return {
            f"adversarial_accuracy_{first['steps']}_steps": first["adversarial_accuracy"],
            f"expected_robustness_{first['steps']}_steps": first["expected_robustness"],
            "attack_steps": self.rounds[-1]["steps"],
            "attack_settled": float(self.settled),
        }

    def sentence(self) -> str:
        """How it ended, in words."""
        last = self.rounds[-1]
        if len(self.rounds) == 1:
            return f"after {last['steps']} attack steps no image is left standing"
        first, before = self.rounds[0], self.rounds[-2]
        fall = max(b - a for b, a in zip(before["accuracies"], last["accuracies"], strict=True))
        since = first["adversarial_accuracy"] - last["adversarial_accuracy"]
        return (
            f"from {before['steps']} to {last['steps']} attack steps the accuracy falls by at most {100 * fall:.1f} "
            f"points at any eps; since {first['steps']} steps by {100 * since:.1f} points at the largest one"
        )


def with_convergence(checks: Sequence[TrustCheck], rounds: Convergence) -> list[TrustCheck]:
    """The trust checks, with what the rounds tell of all images as the check `converged`."""
    first, last = rounds.rounds[0], rounds.rounds[-1]
    converged = verdict(
        "converged",
        rounds.settled,
        first["adversarial_accuracy"] - last["adversarial_accuracy"],
        rounds.sentence(),
        advice=f"the reported accuracy is too high: raise {rounds.limit_name} above {rounds.limit}",
    )
    named = {check.name: check for check in [*checks, converged]}
    return [named[name] for name in OPENINGS if name in named]


def _is_small(before: int, after: int, count: int) -> bool:
    low, high = accuracy_interval(after, count)
    return (before - after) / count < min(SETTLED, (high - low) / 2)
