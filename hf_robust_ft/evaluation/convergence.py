"""Attack steps doubled until the accuracy stands still (`attack_steps="auto"`): an accuracy that more steps would not
lower much, beside the one after the first steps, which are the paper's."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hf_robust_ft.attacks import APGD, Square
from hf_robust_ft.evaluation.confidence_intervals import accuracy_interval
from hf_robust_ft.evaluation.protocols import get_protocol
from hf_robust_ft.evaluation.scoring import share_of_each_image
from hf_robust_ft.evaluation.trust_verdicts import OPENINGS, TrustCheck, is_tolerated, verdict

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


def check_steps_limit(limit: int, steps: int | str | None, name: str = "attack_steps_limit") -> None:
    """Raise a ValueError unless `limit` leaves room for the first round, and `steps` are those that it limits."""
    of = name.removesuffix("_limit")
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < FIRST_STEPS:
        raise ValueError(
            f"{name} is the most steps that {of}='auto' may take, a whole number of at least {FIRST_STEPS}; "
            f"got {limit!r}."
        )
    if limit != STEPS_LIMIT and steps != AUTO:
        fixed = "the protocol's own steps" if steps is None else f"{of}={steps}"
        raise ValueError(
            f"{name}={limit} does nothing with {fixed}, which are fixed: set {of}='auto', or leave it out."
        )


def steps_under(protocol: str, steps: int | str | None, name: str = "attack_steps") -> int | str | None:
    """The steps that a protocol takes, given what was asked for: "auto" where it closes with other attacks.

    Raises:
        ValueError: an unknown protocol, neither a count nor "auto", or a count where the protocol takes as many as it
            needs.
    """
    steps = None if steps is None else parse_attack_steps(steps, name)
    if not get_protocol(protocol).closing:
        return steps
    if steps not in (None, AUTO):
        raise ValueError(
            f"Protocol {protocol} takes as many attack steps as the accuracy needs to settle, got {name} {steps}: "
            f"leave them out, or choose another protocol."
        )
    return AUTO


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
    interval; below 100 images a single image is more than a point. Where the limit ends them, the accuracy has settled
    all the same if the last one lowered it by no more than is tolerated (`trust_verdicts.is_tolerated`).

    Args:
        attack: of the first round.
        epsilons: the grid.
        protocol: a key of `PROTOCOLS`.
        limit: the most steps.
        limit_name: what the user calls it.
        closing: attacks of other kinds, one after the other on what stands once the steps are done with.
    """

    attack: APGD
    epsilons: list[float]
    protocol: str
    limit: int = STEPS_LIMIT
    limit_name: str = "attack_steps_limit"
    rounds: list[dict[str, Any]] = field(default_factory=list)
    settled: bool = False
    closing: Sequence[APGD | Square] = ()
    closed: list[dict[str, Any]] | None = None  # of each closing attack so far; None before the first is asked for

    def add(self, smallest_epsilons: Sequence[float]) -> None:
        """Enter the smallest fooling eps (N,) of every image after a round."""
        smallest, grid = np.asarray(smallest_epsilons, dtype=np.float64), np.asarray(self.epsilons)
        standing = (smallest[:, None] > grid).sum(0)
        found = {"steps": self.attack.steps} | self._scores(smallest)
        if self.rounds:
            before = np.rint(np.array(self.rounds[-1]["accuracies"]) * len(smallest)).astype(int)
            self.settled = all(_is_small(*counts, len(smallest)) for counts in zip(before, standing, strict=True))
            if 2 * self.attack.steps > self.limit:
                self.settled |= bool(is_tolerated((before - standing).max(), len(smallest)))
        elif not standing[1:].any():
            self.settled = True  # nothing is left to attack
        self.rounds.append(found)

    def _scores(self, smallest: np.ndarray) -> dict[str, Any]:
        grid = np.asarray(self.epsilons)
        return {
            "adversarial_accuracy": float((smallest > grid[-1]).mean()),
            "expected_robustness": float(share_of_each_image(smallest, grid, self.protocol).mean()),
            "accuracies": (smallest[:, None] > grid).mean(0).tolist(),
        }

    def after(self, smallest_epsilons: Sequence[float]) -> APGD | Square | None:
        """Enter a round as `add` does; the attack of the next one, None where this was the last."""
        if self.closed is None:
            self.add(smallest_epsilons)
            steps = 2 * self.attack.steps
            if not self.settled and steps <= self.limit:
                self.attack = replace(self.attack, steps=steps)
                return self.attack
            self.closed = []
        else:
            scores = self._scores(np.asarray(smallest_epsilons, dtype=np.float64))
            self.closed.append({"attack": str(self.closing[len(self.closed)])} | scores)
        return self.closing[len(self.closed)] if len(self.closed) < len(self.closing) else None

    @property
    def rounds_done(self) -> int:
        """Of all kinds."""
        return len(self.rounds) + len(self.closed or ())

    def described(self) -> dict[str, Any]:
        """What a report keeps: `limit`, `settled`, of each round its steps and scores, and likewise of `closing`."""
        closing = {"closing": self.closed} if self.closed else {}
        return {"limit": self.limit, "settled": self.settled, "rounds": self.rounds} | closing

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
