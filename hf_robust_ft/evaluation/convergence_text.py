"""What the rounds of `attack_steps="auto"` tell, in words: the converged figures never stand without the first ones."""

from collections.abc import Mapping
from typing import Any


def first_round(convergence: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Steps and scores of the first round, the paper's attack; None where the steps were fixed."""
    return convergence["rounds"][0] if convergence else None


def convergence_sentence(convergence: Mapping[str, Any]) -> str | None:
    """How many steps it took, whether the accuracy settled, and what it was after the first; None for fixed steps.

    >>> of = lambda steps, a: {"steps": steps, "adversarial_accuracy": a, "expected_robustness": 0.8}
    >>> rounds = [of(10, 0.5), of(20, 0.4)]
    >>> convergence_sentence({"limit": 20, "settled": False, "rounds": rounds})  # doctest: +NORMALIZE_WHITESPACE
    'Attack steps doubled up to 20 without the accuracy settling: it is too high. After 10 steps, as in the paper:
    50.0% adversarial accuracy (10.0 points more), 80.0% expected robustness.'
    """
    first = first_round(convergence)
    if first is None:
        return None
    last = convergence["rounds"][-1]["steps"]
    how = f"until the accuracy settled, at {last}"
    if not convergence["settled"]:
        how = f"up to {last} without the accuracy settling: it is too high"
    others = [f"{round['attack']}: {round['adversarial_accuracy']:.1%}" for round in convergence.get("closing", ())]
    then = f" Then {'; then '.join(others)}." if others else ""
    if others:
        how += f" ({convergence['rounds'][-1]['adversarial_accuracy']:.1%} adversarial accuracy)"
    last_of_all = (*convergence["rounds"], *convergence.get("closing", ()))[-1]
    gap = 100 * (first["adversarial_accuracy"] - last_of_all["adversarial_accuracy"])
    return (
        f"Attack steps doubled {how}.{then} After {first['steps']} steps, as in the paper: "
        f"{first['adversarial_accuracy']:.1%} adversarial accuracy ({gap:.1f} points more), "
        f"{first['expected_robustness']:.1%} expected robustness."
    )
