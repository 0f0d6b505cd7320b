"""What is said of the objective that a model was trained by."""

from collections.abc import Mapping
from typing import Any

from hf_robust_ft.evaluation.report import RobustnessReport
from hf_robust_ft.evaluation.trust_verdicts import is_of_several_attacks


def objective_text(training: Mapping[str, Any]) -> str | None:
    """Its name and weight, and the method that trains modules beside the model; None for plain adversarial training.

    >>> objective_text({"objective": "trades", "objective_beta": 6.0})
    'trades, beta 6'
    >>> objective_text({"objective": "pmg_aft", "objective_alpha": 1.0, "objective_beta": 1.0})
    'pmg_aft, alpha 1, beta 1'
    >>> objective_text({"twins_lambda": 0.4})
    'at, by TWINS, lambda 0.4'
    """
    text, gamma = training.get("objective", "at"), training.get("awp_gamma")
    if (alpha := training.get("objective_alpha")) is not None:
        text += f", alpha {alpha:g}"
    if (beta := training.get("objective_beta")) is not None:
        text += f", beta {beta:g}"
    if gamma:
        text += f", AWP {gamma:g}"
    if (weight := training.get("twins_lambda")) is not None:
        return f"{text}, by TWINS, lambda {weight:g}"
    if training.get("autolora"):
        return f"AutoLoRA, rank {training.get('autolora_rank')}, scale {training.get('autolora_scale'):g}"
    return text if "objective" in training or gamma else None


def objective_doubt(report: RobustnessReport) -> str | None:
    """The warning that attacks on cross-entropy alone flatter what was trained; None where others were run."""
    training = report.metadata.get("training") or {}
    is_measured = is_of_several_attacks(report.protocol) or report.autoattack_accuracy is not None
    if training.get("objective") != "mart" or is_measured or report.epsilons[-1] <= 0:
        return None
    return (
        "This model was trained by MART, which attacks on cross-entropy flatter: AutoAttack finds more errors than "
        "they do. Measure it by hf-robust-ft evaluate --protocol reliable, or with --autoattack."
    )
