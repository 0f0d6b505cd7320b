"""The command that measures a checkpoint as a report says it was measured."""

import shlex
from typing import Any

from hf_robust_ft.attacks.threat_model import ThreatModel, format_eps
from hf_robust_ft.evaluation.convergence import AUTO, STEPS_LIMIT
from hf_robust_ft.evaluation.protocols import resolve_epsilons
from hf_robust_ft.evaluation.report import RobustnessReport

DEFAULT_SPLITTING = {"validation_size": 0.1, "test_size": 0.2, "split_seed": 0, "max_eval_samples": None}


def evaluate_command(report: RobustnessReport, model: str, **more: Any) -> str:
    """`hf-robust-ft evaluate ...` with the report's dataset, threat model, attack and protocol.

    Args:
        model: a folder or Hub id.
        more: further options, such as `output_dir`.
    """
    facts, attack = report.metadata, report.attack
    threat_model = ThreatModel(**report.threat_model)
    options = {
        "model": model,
        "dataset": facts.get("dataset_alias") or facts.get("dataset_path") or facts.get("dataset") or "DATASET",
        "dataset_config": facts.get("dataset_config"),
        "dataset_revision": facts.get("dataset_commit") if not facts.get("dataset_alias") else None,
        "split": facts.get("split") if facts.get("split") != "test" else None,
        "norm": threat_model.norm,
        "eps": format_eps(threat_model.eps),
        "attack_steps": AUTO if report.convergence else attack["steps"],
        "attack_steps_limit": limit if (limit := report.convergence.get("limit", STEPS_LIMIT)) != STEPS_LIMIT else None,
        "attack_loss": attack["loss"] if attack["loss"] != "ce" else None,
        "protocol": report.protocol if report.protocol != "paper" else None,
        "autoattack": report.autoattack_samples or None,
    }
    splitting = facts.get("splitting") or {}
    options |= {name: splitting.get(name) for name, value in DEFAULT_SPLITTING.items() if splitting.get(name) != value}
    words = [
        word for name, value in (options | more).items() if value is not None for word in (f"--{name}", str(value))
    ]
    if list(report.epsilons) != resolve_epsilons(None, threat_model):
        words += ["--epsilons", *map(format_eps, report.epsilons)]
    return shlex.join(["hf-robust-ft", "evaluate", *words])
