"""The command that measures a segmentation checkpoint as a report says it was measured."""

import shlex
from typing import Any

from hf_robust_ft.attacks.threat_model import ThreatModel, format_eps
from hf_robust_ft.evaluation.convergence import AUTO, STEPS_LIMIT
from hf_robust_ft.evaluation.protocols import resolve_epsilons
from hf_robust_ft.evaluation.segmentation.report import SegmentationReport
from hf_robust_ft.reporting.commands import DEFAULT_SPLITTING

USUAL = {"ignore_index": 255, "reduce_labels": False}


def evaluate_segmentation_command(report: SegmentationReport, model: str, **more: Any) -> str:
    """`hf-robust-ft evaluate ...` with the report's dataset, threat model, attack and protocol.

    Args:
        model: a folder or Hub id.
        more: further options, such as `output_dir`.
    """
    facts, attack = report.metadata, report.attacks[0]
    threat_model = ThreatModel(**report.threat_model)
    by_protocol = report.protocol != "paper"
    options = {
        "model": model,
        "dataset": facts.get("dataset_path") or facts.get("dataset") or "DATASET",
        "dataset_config": facts.get("dataset_config"),
        "dataset_revision": facts.get("dataset_commit"),
        "split": facts.get("split") if facts.get("split") != "test" else None,
        "norm": threat_model.norm,
        "eps": format_eps(threat_model.eps),
        "attack_steps": AUTO if report.convergence else attack["steps"],
        "attack_steps_limit": limit if (limit := report.convergence.get("limit", STEPS_LIMIT)) != STEPS_LIMIT else None,
        "attack_loss": attack["loss"] if not by_protocol and attack["loss"] != "pixel_ce" else None,
        "protocol": report.protocol if by_protocol else None,
    }
    splitting = facts.get("splitting") or {}
    options |= {name: splitting.get(name) for name, value in DEFAULT_SPLITTING.items() if splitting.get(name) != value}
    options |= {name: value for name, value in (facts.get("masks") or {}).items() if USUAL.get(name) != value}
    words = [
        word for name, value in (options | more).items() if value is not None for word in (f"--{name}", str(value))
    ]
    if list(report.epsilons) != resolve_epsilons(None, threat_model):
        words += ["--epsilons", *map(format_eps, report.epsilons)]
    return shlex.join(["hf-robust-ft", "evaluate", *words])
