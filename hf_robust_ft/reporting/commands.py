"""The command that measures a checkpoint as a report says it was measured."""

import shlex
from collections.abc import Mapping
from typing import Any

from hf_robust_ft.attacks.threat_model import ThreatModel, format_eps
from hf_robust_ft.evaluation.convergence import AUTO, STEPS_LIMIT
from hf_robust_ft.evaluation.detection.report import DetectionReport
from hf_robust_ft.evaluation.protocols import resolve_epsilons
from hf_robust_ft.evaluation.report import RobustnessReport
from hf_robust_ft.evaluation.segmentation.report import SegmentationReport

DEFAULT_SPLITTING = {"validation_size": 0.1, "test_size": 0.2, "split_seed": 0, "max_eval_samples": None}
DEFAULT_MASKS = {"ignore_index": 255, "reduce_labels": False}


def model_to_name(facts: Mapping[str, Any]) -> str:
    """What a card's commands take as the model: its repository, the folder that the card lies in, or what was measured.

    "MODEL" stands for a folder whose place is nobody else's concern.
    """
    return facts.get("repo_id") or ("." if facts.get("training") else facts.get("base_model") or "MODEL")


def how_to_measure_again(command: str, extra: str = "") -> str:
    """The sentence before a card's command; what stands in it in capitals is for the reader to fill in.

    Args:
        extra: of the package, which measuring needs.
    """
    words = shlex.split(command)
    where = " in this folder" if "." in words else ""
    fill_in = {
        "MODEL": ", MODEL being the folder that was measured",
        "DATASET": ", DATASET the images it was measured on (a folder or a Hub id)",
    }
    named = "".join(sentence for word, sentence in fill_in.items() if word in words)
    with_extra = f" (with the extra `{extra}`)" if extra else ""
    return f"Measure it again{where}{named}, with hf_robust_ft installed as its README says{with_extra}:"


def evaluate_command(report: RobustnessReport, model: str, **more: Any) -> str:
    """`hf-robust-ft evaluate ...` with the report's dataset, threat model, attack and protocol.

    Args:
        model: a folder or Hub id.
        more: further options, such as `output_dir`.
    """
    measured = {
        **_steps(report, report.attack),
        "attack_loss": report.attack["loss"] if report.attack["loss"] != "ce" else None,
        "protocol": report.protocol if report.protocol != "paper" else None,
        "autoattack": report.autoattack_samples or None,
    }
    return _command(report, model, measured, more)


def evaluate_segmentation_command(report: SegmentationReport, model: str, **more: Any) -> str:
    """The same of a segmentation checkpoint."""
    by_protocol, loss = report.protocol != "paper", report.attacks[0]["loss"]
    measured = {
        **_steps(report, report.attacks[0]),
        "attack_loss": loss if not by_protocol and loss != "pixel_ce" else None,
        "protocol": report.protocol if by_protocol else None,
    }
    masks = report.metadata.get("masks") or {}
    masks = {name: value for name, value in masks.items() if DEFAULT_MASKS.get(name) != value}
    return _command(report, model, measured, masks | more)


def evaluate_detection_command(report: DetectionReport, model: str, **more: Any) -> str:
    """The same of a detection checkpoint."""
    return _command(report, model, {"attack_steps": report.attack["steps"]}, more)


def _steps(report: RobustnessReport | SegmentationReport, attack: dict[str, Any]) -> dict[str, Any]:
    limit = report.convergence.get("limit", STEPS_LIMIT)
    return {
        "attack_steps": AUTO if report.convergence else attack["steps"],
        "attack_steps_limit": limit if limit != STEPS_LIMIT else None,
    }


def _command(
    report: RobustnessReport | SegmentationReport | DetectionReport,
    model: str,
    measured: dict[str, Any],
    more: dict[str, Any],
) -> str:
    """Data and threat model are told alike by all reports; options of None are left out."""
    facts, threat_model = report.metadata, ThreatModel(**report.threat_model)
    options = {
        "model": model,
        "dataset": facts.get("dataset_alias") or facts.get("dataset_path") or facts.get("dataset") or "DATASET",
        "dataset_config": facts.get("dataset_config"),
        "dataset_revision": facts.get("dataset_commit") if not facts.get("dataset_alias") else None,
        "split": facts.get("split") if facts.get("split") != "test" else None,
        "norm": threat_model.norm,
        "eps": format_eps(threat_model.eps),
        **measured,
    }
    splitting = facts.get("splitting") or {}
    options |= {name: splitting.get(name) for name, value in DEFAULT_SPLITTING.items() if splitting.get(name) != value}
    words = [
        word for name, value in (options | more).items() if value is not None for word in (f"--{name}", str(value))
    ]
    if list(report.epsilons) != resolve_epsilons(None, threat_model):
        words += ["--epsilons", *map(format_eps, report.epsilons)]
    return shlex.join(["hf-robust-ft", "evaluate", *words])
