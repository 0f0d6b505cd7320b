"""Whether a model may be called robust at the eps it was measured up to.

The bar: at that eps at least half as many answers are right as without an attack, and more than guessing gives, which
is the share of the most frequent class. Where AutoAttack was run as well, its accuracy counts if lower.
"""

from dataclasses import dataclass

from hf_robust_ft.attacks.threat_model import format_eps
from hf_robust_ft.evaluation.report import RobustnessReport

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


def verdict(report: RobustnessReport) -> Verdict | None:
    """The verdict on a report; None where no attack was run."""
    if report.epsilons[-1] <= 0:
        return None
    norm, clean, at_eps = report.threat_model["norm"], report.clean_accuracy, report.adversarial_accuracy
    if report.autoattack_accuracy is not None:
        at_eps = min(at_eps, report.autoattack_accuracy)
    by_guessing = guessing(report)
    passed = [each >= BAR * clean and each > by_guessing for each in (*report.accuracies[:-1], at_eps)]
    count = (*passed, False).index(False)  # points from 0 on that pass
    threat, up_to = (f"{norm} {format_eps(eps)}" for eps in (report.epsilons[-1], report.epsilons[max(count - 1, 0)]))
    if count == len(passed):
        return Verdict(threat, True, threat, f"Robust at {threat}: {at_eps:.1%} of the answers are right there.")
    limit = f"at least half of the {clean:.1%} without an attack"
    if by_guessing >= BAR * clean:
        limit = f"more than the {by_guessing:.1%} that naming the most frequent class gives"
    kept = "Nor is it at any smaller eps measured."
    if count > 1:
        kept = f"It still is at {up_to}, where {report.accuracies[count - 1]:.1%} are right."
    told = f"Not robust at {threat}: {at_eps:.1%} of the answers are right there, and it takes {limit}. {kept}"
    if clean <= by_guessing:
        told = (
            f"Not robust at {threat}: {at_eps:.1%} of the answers are right there, and without an attack {clean:.1%}, "
            f"no more than the {by_guessing:.1%} that naming the most frequent class gives: it has not learned its "
            f"task, which takes more epochs or another learning rate. {kept}"
        )
    return Verdict(threat, False, up_to if count > 1 else "", told)


def guessing(report: RobustnessReport) -> float:
    """The accuracy that naming the most frequent class gives, under every attack; 0 where the classes are not known."""
    counts = [row["samples"] for row in report.per_class]
    return max(counts) / sum(counts) if counts else 0.0
