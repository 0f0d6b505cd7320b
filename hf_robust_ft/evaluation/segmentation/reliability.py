"""Whether a segmentation report's robust figures are reliable: "ok", or "doubtful" for reasons."""

from typing import Any

from hf_robust_ft.evaluation.reliability import DOUBTFUL, NOT_CHECKED, NOT_RUN, OK
from hf_robust_ft.evaluation.trust_verdicts import OPENINGS

CHECKS = tuple(name for name in OPENINGS if name != "monotone")  # what is found at an eps is kept at larger ones


def segmentation_reliability(report: Any) -> dict[str, Any]:
    """The verdict on a `SegmentationReport` and why.

    Returns:
        `verdict`: "ok" or "doubtful". `reasons`: each "NAME: what is wrong", where NAME is a trust check's that failed
        or that is missing; "not_checked", where all are; or "half_precision". Where no attack was run, only failed
        checks are reasons.
    """
    reasons = {check["name"]: _finding(check["name"]) for check in report.checks if not check["passed"]}
    if report.epsilons[-1] > 0:
        known = {check["name"] for check in report.checks}
        missing = {name: NOT_RUN for name in CHECKS if name not in known}
        reasons |= missing if known else {NOT_CHECKED: "no trust checks were run"}
        if precision := report.metadata.evaluated_in:
            reasons["half_precision"] = f"measured in {precision}, in which attacks find fewer errors than in fp32"
    return {
        "verdict": DOUBTFUL if reasons else OK,
        "reasons": [f"{name}: {finding}" for name, finding in reasons.items()],
    }


def _finding(name: str) -> str:
    opening = OPENINGS[name][1] if name in OPENINGS else "this check failed"
    return opening[0].lower() + opening[1:]
