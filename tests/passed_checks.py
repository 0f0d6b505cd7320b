"""All trust checks passed, or all but some, for reports that tests make up."""

from hf_robust_ft.evaluation.trust_verdicts import OPENINGS, TrustCheck


def passed_checks(*failed: str) -> list[TrustCheck]:
    """One of each, those named failed."""
    return [TrustCheck(name, name not in failed, 0.0, f"What {name} found.") for name in OPENINGS]
