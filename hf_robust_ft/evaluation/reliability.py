"""Whether a report's robust figures are reliable: "ok", or "doubtful" for reasons; all that shows a figure shows this.

An accuracy under attack is too high wherever an attack fails, so it counts only where checks looked for that and found
nothing. "ok" is no certificate.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from hf_robust_ft.attacks import Square
from hf_robust_ft.evaluation.protocols import RECOMMENDED
from hf_robust_ft.evaluation.trust_verdicts import OPENINGS, is_of_several_attacks, is_tolerated

OK, DOUBTFUL = "ok", "doubtful"
REPLACED_BY_SEVERAL_ATTACKS = ("second_opinion", "converged")  # checks

NOT_CHECKED, NOT_RUN = "not_checked", "not checked"
_MORE_ATTACKS = f"measure it with hf-robust-ft evaluate --protocol {RECOMMENDED}"
_ONE_ANSWER = "let the answer depend on the image alone: evaluation mode, nothing random and no batch statistics"
_CURES = {
    NOT_CHECKED: "run the trust checks, as hf-robust-ft evaluate does unless told not to",
    "converged": "take more attack steps: --attack_steps auto, and a higher --attack_steps_limit if that is reached",
    "deterministic": _ONE_ANSWER,
    "alone": _ONE_ANSWER,
    "half_precision": "measure it in fp32",
    "autoattack": "take AutoAttack's figure",
}


def reliability_of(report: Any) -> dict[str, Any]:
    """The verdict on a `RobustnessReport` and why.

    Returns:
        `verdict`: "ok" or "doubtful". `reasons`: each "NAME: what is wrong", where NAME is a trust check's that failed
        or that is missing, as in a report of before there was one; "not_checked", where all are;
        "autoattack" (finds errors on more of its images than `is_tolerated` that the report counts as robust), "square"
        (as the last attack of a protocol it fools more than that of what attacks by gradients leave) or
        "half_precision". Where no attack was run, only failed checks are reasons.
    """
    failed = {check["name"]: _finding(check["name"]) for check in report.checks if not check["passed"]}
    reasons = failed if report.epsilons[-1] <= 0 else failed | _unproven(report) | _contradicted(report)
    return {
        "verdict": DOUBTFUL if reasons else OK,
        "reasons": [f"{name}: {finding}" for name, finding in reasons.items()],
    }


def is_reliable(report: Any) -> bool:
    """Whether the verdict is "ok"."""
    return report.reliability["verdict"] == OK


def reliability_of_autoattack(reliability: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict on AutoAttack's own figure in a report of this `reliability`: all but what that figure settles.

    >>> reliability_of_autoattack({"verdict": "doubtful", "reasons": ["autoattack: leaves 10.0% of 100 images right"]})
    {'verdict': 'ok', 'reasons': []}
    """
    reasons = [reason for reason in reliability["reasons"] if reason.partition(":")[0] != "autoattack"]
    return {"verdict": DOUBTFUL if reasons else OK, "reasons": reasons}


def reason_names(reliability: Mapping[str, Any]) -> list[str]:
    """The names alone.

    >>> reason_names({"verdict": "doubtful", "reasons": ["half_precision: measured in bf16"]})
    ['half_precision']
    """
    return [reason.partition(":")[0] for reason in reliability["reasons"]]


def short_verdict(reliability: Mapping[str, Any]) -> str:
    """The verdict with the names of its reasons, for a cell of a table.

    >>> short_verdict({"verdict": "doubtful", "reasons": ["half_precision: measured in bf16"]})
    'doubtful: half_precision'
    """
    return ": ".join([reliability["verdict"], *filter(None, [", ".join(reason_names(reliability))])])


def reliability_sentence(report: Any) -> str:
    """The verdict in words, with every reason and what to do about it; one line."""
    found = report.reliability
    if not found["reasons"]:
        if report.epsilons[-1] <= 0:
            return "Reliability: ok, as no attack was run."
        passed = len(report.checks)
        return f"Reliability: ok. All {passed} trust checks passed; the figures are upper bounds all the same."
    reasons = [reason.partition(": ") for reason in found["reasons"]]
    several = is_of_several_attacks(report.protocol)
    own_cures = _CURES | ({"converged": "raise --attack_steps_limit"} if several else {})
    otherwise = "find what in the model keeps attacks from its gradients" if several else _MORE_ATTACKS
    kinds = [NOT_CHECKED if finding == NOT_RUN else name for name, _, finding in reasons]
    cures = dict.fromkeys(own_cures.get(kind, otherwise) for kind in kinds)
    told = "; ".join(f"{finding} ({name})" for name, _, finding in reasons)
    return f"Reliability: doubtful. Robust figures may be too high: {told}. To settle it, {', and '.join(cures)}."


def count_reliable(reliabilities: Iterable[Mapping[str, Any]]) -> str:
    """How many of several results are doubtful and why, in one sentence."""
    found = list(reliabilities)
    reasons = Counter(name for each in found for name in reason_names(each))
    doubtful = sum(each["verdict"] == DOUBTFUL for each in found)
    if not doubtful:
        return f"Reliability: ok in all runs ({len(found)})."
    why = ", ".join(f"{name} {count}" for name, count in reasons.items())
    return f"Reliability: robust figures are doubtful in {doubtful} of {len(found)} runs ({why}) and may be too high."


def _finding(name: str) -> str:
    opening = OPENINGS[name][1] if name in OPENINGS else "this check failed"
    return opening[0].lower() + opening[1:]


def _unproven(report: Any) -> dict[str, str]:
    """What nobody looked for; a number of steps that did not settle the accuracy is known to be too small."""
    convergence, known = report.convergence, {check["name"] for check in report.checks}
    several = REPLACED_BY_SEVERAL_ATTACKS if is_of_several_attacks(report.protocol) else ()
    spared = {*several, *(["converged"] if convergence else [])}
    reasons = {name: NOT_RUN for name in OPENINGS if name not in known | spared}
    if not known:
        reasons = {NOT_CHECKED: "no trust checks were run"}
    if convergence and not convergence["settled"]:
        reasons["converged"] = f"up to {convergence['limit']} attack steps did not settle the accuracy"
    return reasons


def _contradicted(report: Any) -> dict[str, str]:
    """What was found apart from the checks."""
    reasons = {}
    count, stated = report.autoattack_samples, _standing_before_autoattack(report)
    if report.autoattack_accuracy is not None and count:
        lost = round((stated - report.autoattack_accuracy) * count)
        if not is_tolerated(lost, count):
            reasons["autoattack"] = (
                f"AutoAttack leaves {report.autoattack_accuracy:.1%} of {count} images right, not {stated:.1%}"
            )
    found = _by_search_alone(report)
    if not is_tolerated(found, report.num_samples):
        reasons["square"] = (
            f"a search that needs no gradients (Square) fools {found} of {report.num_samples} images that no attack by "
            "gradients does, so these are led astray"
        )
    if precision := report.metadata.evaluated_in:
        reasons["half_precision"] = f"measured in {precision}, in which attacks find fewer errors than in fp32"
    return reasons


def _by_search_alone(report: Any) -> int:
    """How many images fall to Square after all attacks by gradients.

    On honest networks none did, in 12 of 12 cases (digits and flowers, 64 to 100 images; CNN, ViT, EfficientNet-Lite0,
    trained adversarially or not); where the gradient is another pixel's or that of a JPEG's rounding, 10 to 18 of 64.
    """
    closing = (report.convergence or {}).get("closing", ())
    found = 0
    for before, after in pairwise(closing):
        if after["attack"].startswith(Square.__name__):
            found += round((before["adversarial_accuracy"] - after["adversarial_accuracy"]) * report.num_samples)
    return found


def _standing_before_autoattack(report: Any) -> float:
    """Adversarial accuracy on AutoAttack's images, or on all where single images are not known."""
    images = report.autoattack_images or range(report.autoattack_samples)
    smallest = [report.smallest_epsilons[index] for index in images if index < len(report.smallest_epsilons)]
    return sum(eps is None for eps in smallest) / len(smallest) if smallest else report.adversarial_accuracy
