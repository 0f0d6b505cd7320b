"""The outcome of a trust check, how it is worded, and how many images any of them may lose."""

from collections.abc import Sequence
from dataclasses import dataclass

from hf_robust_ft.evaluation.protocols import PROTOCOLS, RECOMMENDED

# Of the images that an accuracy is over; a single one always, which is as fine as an accuracy can be. Checks that
# compare accuracies allow as much.
TOLERATED_SHARE = 0.01

# What a check says first, where it passes and where it fails; the numbers follow.
OPENINGS = {
    "gradients": ("The attack can see where to go", "The attack cannot see where to go"),
    "monotone": ("More room does not hinder the attack", "More room hinders the attack, as it never should"),
    "random_noise": ("Noise is not the better attack", "The attack does no better than noise"),
    "converged": ("More steps change little", "The attack stopped while its loss was still rising"),
    "deterministic": ("The model answers the same each time", "The model answers differently each time"),
    "alone": ("An image is judged by itself", "An image is judged by its company"),
    "huge_eps": ("The attack can fool this model", "The attack cannot fool this model even with huge perturbations"),
    "second_opinion": ("Other attacks find little more", "Other attacks find more, or do not get anywhere"),
}


@dataclass(frozen=True)
class TrustCheck:
    """The outcome of one check.

    Attributes:
        name: one of `OPENINGS`.
        passed: False where the robust accuracy is likely too high; True also where the check could not be made.
        value: what it was decided by (see `run_trust_checks`), None where there is no such number.
        sentence: what was found, what it means and, if it failed, what to do.
    """

    name: str
    passed: bool
    value: float | None
    sentence: str


def verdict(name: str, passed: bool, value: float, numbers: str, *, advice: str) -> TrustCheck:
    """The outcome whose sentence opens as `OPENINGS` says and, if the check failed, ends in what to do."""
    good, bad = OPENINGS[name]
    return TrustCheck(name, passed, value, f"{good}: {numbers}." if passed else f"{bad}: {numbers}; {advice}.")


def is_tolerated(count: int, num_images: int) -> bool:
    """Whether an accuracy over `num_images` still counts where `count` of them are not as they should be.

    >>> is_tolerated(1, 8), is_tolerated(2, 64), is_tolerated(3, 300), is_tolerated(4, 300)
    (True, False, True, False)
    """
    return count <= 1 or count / num_images <= TOLERATED_SHARE


def is_of_several_attacks(protocol: str) -> bool:
    """Whether a protocol takes the worst case of attacks of other kinds, one of which needs no gradients."""
    return protocol in PROTOCOLS and bool(PROTOCOLS[protocol].closing)


def other_attacks(protocol: str) -> str:
    """What else to attack with where the attack of a protocol is in doubt."""
    if is_of_several_attacks(protocol):
        return "AutoAttack, whose search without gradients is longer than this protocol's"
    return f"protocol {RECOMMENDED}, one of whose attacks (Square) needs no gradients"


def summary(checks: Sequence[TrustCheck]) -> str:
    """One line a check: "ok   gradients: ..." or "WARN converged: ..."."""
    return "\n".join(f"{'ok' if check.passed else 'WARN':<4} {check.name}: {check.sentence}" for check in checks)
