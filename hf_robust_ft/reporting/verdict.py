"""Whether a model may be called robust at the eps it was measured up to.

The bar: at that eps at least half as many answers are right as without an attack, and more than guessing gives, which
is the share of the most frequent class. Where AutoAttack was run as well, its accuracy counts if lower.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hf_robust_ft.attacks.threat_model import format_eps
from hf_robust_ft.evaluation.report import RobustnessReport
from hf_robust_ft.reporting.report_files import Report

BAR = 0.5  # share of the clean accuracy


@dataclass(frozen=True)
class Verdict:
    """What a report allows to be said.

    Attributes:
        threat: norm and eps measured up to, "Linf 4/255".
        is_robust: at this eps.
        up_to: norm and largest eps of the curve up to which the model is, "Linf 1/255"; empty where there is none.
        sentence: all of it with its numbers.
    """

    threat: str
    is_robust: bool
    up_to: str
    sentence: str


class Words(NamedTuple):
    """How a task's sentences name its score; `{}` is a share.

    Args:
        there: at the largest eps.
        still: at the eps up to which it is robust.
        guessed: what gives the score of guessing.
    """

    there: str
    still: str
    guessed: str


def verdict(report: RobustnessReport) -> Verdict | None:
    """The verdict on a report; None where no attack was run."""
    accuracies = list(report.accuracies)
    if report.autoattack_accuracy is not None:
        accuracies[-1] = min(accuracies[-1], report.autoattack_accuracy)
    words = Words("{} of the answers are right", "{} are right", "naming the most frequent class")
    return verdict_by(report, accuracies, guessing(report), words)


def verdict_by(report: Report, curve: Sequence[float], by_guessing: float, words: Words) -> Verdict | None:
    """The verdict by a score's values at the report's eps; None where no attack was run."""
    if report.epsilons[-1] <= 0:
        return None
    norm, clean, at_eps = report.threat_model["norm"], curve[0], curve[-1]
    passed = [each >= BAR * clean and each > by_guessing for each in curve]
    count = (*passed, False).index(False)  # points from 0 on that pass
    threat, up_to = (f"{norm} {format_eps(eps)}" for eps in (report.epsilons[-1], report.epsilons[max(count - 1, 0)]))
    there = f"{words.there.format(f'{at_eps:.1%}')} there"
    if count == len(passed):
        return Verdict(threat, True, threat, f"Robust at {threat}: {there}.")
    limit = f"at least half of the {clean:.1%} without an attack"
    if by_guessing >= BAR * clean:
        limit = f"more than the {by_guessing:.1%} that {words.guessed} gives"
    kept = "Nor is it at any smaller eps measured."
    if count > 1:
        kept = f"It still is at {up_to}, where {words.still.format(f'{curve[count - 1]:.1%}')}."
    told = f"Not robust at {threat}: {there}, and it takes {limit}. {kept}"
    if clean <= by_guessing:
        told = (
            f"Not robust at {threat}: {there}, and without an attack {clean:.1%}, no more than the {by_guessing:.1%} "
            f"that {words.guessed} gives: it has not learned its task, which takes more epochs or another learning "
            f"rate. {kept}"
        )
    return Verdict(threat, False, up_to if count > 1 else "", told)


def guessing(report: RobustnessReport) -> float:
    """The accuracy that naming the most frequent class gives, under every attack; 0 where the classes are not known."""
    counts = [row["samples"] for row in report.per_class]
    return max(counts) / sum(counts) if counts else 0.0
