"""The command that measures a detection checkpoint as a report says it was measured."""

import shlex
from typing import Any

from hf_robust_ft.attacks.threat_model import ThreatModel, format_eps
from hf_robust_ft.evaluation.detection.report import DetectionReport
from hf_robust_ft.evaluation.protocols import resolve_epsilons
from hf_robust_ft.reporting.commands import DEFAULT_SPLITTING


def evaluate_detection_command(report: DetectionReport, model: str, **more: Any) -> str:
    """`hf-robust-ft evaluate ...` with the report's dataset, threat model and attack.

    Args:
        model: a folder or Hub id.
        more: further options, such as `output_dir`.
    """
    facts, threat_model = report.metadata, ThreatModel(**report.threat_model)
    options = {
        "model": model,
        "dataset": facts.get("dataset_path") or facts.get("dataset") or "DATASET",
        "dataset_config": facts.get("dataset_config"),
        "dataset_revision": facts.get("dataset_commit"),
        "split": facts.get("split") if facts.get("split") != "test" else None,
        "norm": threat_model.norm,
        "eps": format_eps(threat_model.eps),
        "attack_steps": report.attack["steps"],
    }
    splitting = facts.get("splitting") or {}
    options |= {name: splitting.get(name) for name, value in DEFAULT_SPLITTING.items() if splitting.get(name) != value}
    words = [
        word for name, value in (options | more).items() if value is not None for word in (f"--{name}", str(value))
    ]
    if list(report.epsilons) != resolve_epsilons(None, threat_model):
        words += ["--epsilons", *map(format_eps, report.epsilons)]
    return shlex.join(["hf-robust-ft", "evaluate", *words])
