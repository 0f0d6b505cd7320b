"""What was measured, one row a way of measuring: clean, paper, converged, reliable, AutoAttack."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_robust_ft.evaluation.convergence_text import first_round
from hf_robust_ft.evaluation.report import RobustnessReport
from hf_robust_ft.reporting.comparability import attack_name

PAPER_STEPS = 10
UNMEASURED = {  # and the option of `evaluate` that would
    "converged": "not measured (`--attack_steps auto`)",
    "reliable": "not measured (`--protocol reliable`)",
}


def measured_rows(report: RobustnessReport, doubt: str = "", autoattack_doubt: str = "") -> list[tuple[str, ...]]:
    """The cells of the card's table of results: way, attack, accuracy at the largest eps, expected robustness.

    The rows that the report does not hold say so: figures of 10 steps alone should not look like all there is.

    Args:
        doubt: put after the name of each row with an attack.
        autoattack_doubt: and of AutoAttack's.
    """
    intervals = report.confidence_intervals
    found = {"clean": ("none", _percent(report.clean_accuracy, intervals.get("clean_accuracy")), "")}
    final = (
        _percent(report.adversarial_accuracy, intervals.get("adversarial_accuracy"), bold=True),
        _percent(report.expected_robustness, intervals.get("expected_robustness"), bold=True),
    )
    attack = attack_name({**report.attack, "random_start": False}, {})
    rounds = [_round(report, each) for each in (report.convergence or {}).get("rounds", ())]
    plain = "paper" if first_round(report.convergence) or _is_the_papers(report) else "fixed steps"
    settled = "converged" if report.convergence.get("settled", True) else "converged (not settled)"
    if report.protocol == "exact":
        found |= {"exact, first round": rounds[0]} if rounds else {}
        found["exact"] = (attack, *final)
    elif report.protocol == "reliable":
        found |= {"paper": rounds[0], settled: rounds[-1]} if rounds else {}
        found["reliable"] = ("and three other attacks", *final)
    elif rounds:
        found |= {"paper": rounds[0], settled: (rounds[-1][0], *final)}
    else:
        found[plain] = (attack, *final)
    for name, told in UNMEASURED.items():
        if not any(each.startswith(name) for each in found):
            found[name] = (told, "", "")
    rows = [(name + (doubt if name != "clean" and cells[1] else ""), *cells) for name, cells in found.items()]
    if report.autoattack_accuracy is not None:
        accuracy = _percent(report.autoattack_accuracy, intervals.get("autoattack_accuracy"))
        rows.append((f"AutoAttack{autoattack_doubt}", f"standard, {report.autoattack_set}", accuracy, ""))
    for name, value in report.distributions.items():
        rows.append((f"for eps ~ {name}{doubt}", "as above", "", _percent(value)))
    return rows


def _is_the_papers(report: RobustnessReport) -> bool:
    attack = report.attack
    return attack["steps"] == PAPER_STEPS and attack["loss"] == "ce" and not attack["random_start"]


def _round(report: RobustnessReport, scores: Mapping[str, Any]) -> tuple[str, str, str]:
    attack = attack_name({**report.attack, "random_start": False, "steps": scores["steps"]}, {})
    return attack, _percent(scores["adversarial_accuracy"]), _percent(scores["expected_robustness"])


def _percent(value: float, interval: Sequence[float] | None = None, bold: bool = False) -> str:
    told = f"{100 * value:.2f} %"
    told = f"**{told}**" if bold else told
    return told + (f" ({100 * interval[0]:.2f} to {100 * interval[1]:.2f})" if interval else "")
