"""How each run was measured, side by side."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hf_robust_ft.attacks.threat_model import format_eps
from hf_robust_ft.evaluation.convergence_text import convergence_sentence
from hf_robust_ft.evaluation.reliability import OK, reliability_of_autoattack
from hf_robust_ft.evaluation.report import RobustnessReport
from hf_robust_ft.evaluation.segmentation.convergence import segmentation_convergence_sentence
from hf_robust_ft.evaluation.segmentation.report import SegmentationReport
from hf_robust_ft.reporting.comparability import Setting, attack_name
from hf_robust_ft.reporting.objective import objective_text
from hf_robust_ft.reporting.reach import REACH
from hf_robust_ft.reporting.report_files import Report
from hf_robust_ft.reporting.segmentation.card import attack_of


def attack_facts(report: RobustnessReport) -> dict[str, Any]:
    """What a classifier's report tells of its attacks."""
    return {
        "attack": attack_name(report.attack, report.convergence),
        "attack steps": convergence_sentence(report.convergence),
        "AutoAttack accuracy": _autoattack_text(report),
        **{f"expected robustness, eps ~ {name}": f"{value:.1%}" for name, value in report.distributions.items()},
    }


def attack_facts_of_masks(report: SegmentationReport) -> dict[str, Any]:
    """What a segmenter's tells."""
    return {"attack": attack_of(report), "attack steps": segmentation_convergence_sentence(report.convergence)}


def protocol_rows(
    reports: Sequence[Report],
    setting_of: Callable[[Any], Setting] = Setting.of,
    of_attack: Callable[[Any], dict[str, Any]] = attack_facts,
) -> list[dict[str, Any]]:
    """Settings as rows of `name` and `values`, one a run; in those that `differs` marks the runs differ.

    Args:
        setting_of: how a report was measured.
        of_attack: what else it tells of the attack.
    """
    rows: dict[str, list[str]] = {}
    for position, report in enumerate(reports):
        for name, value in _facts(report, setting_of(report), of_attack(report)).items():
            rows.setdefault(name, [""] * len(reports))[position] = "" if value is None else str(value)
    return [
        {"name": name, "values": values, "differs": len(set(values)) > 1}
        for name, values in rows.items()
        if any(values)
    ]


def _facts(report: Report, setting: Setting, of_attack: dict[str, Any]) -> dict[str, Any]:
    """What a report tells of how it was measured, and of the training before; None for what it does not."""
    facts = report.metadata
    training = facts.get("training") or {}
    subject = facts.get("base_model_text") or facts.get("base_model")
    revision = facts.get("dataset_commit") or facts.get("dataset_revision")
    return {
        "threat model": f"{setting.norm} {setting.eps}",
        "protocol": report.protocol,
        **{name: of_attack.pop(name) for name in ("attack", "attack steps")},
        "measured in": facts.get("evaluated_in"),
        "grid": _grid_text(report.epsilons),
        "images": report.num_samples,
        "dataset": setting.dataset,
        "dataset revision": revision,
        "split": setting.split,
        **of_attack,
        "trained from": subject if training else None,
        "model": None if training else subject,
        "objective": objective_text(training),
        "schedule of eps": training.get("eps_schedule"),
        "trained at eps": training.get("eps"),
        "weights": f"of step {training['weights_step']}, trained at eps {training['weights_eps']}"
        if "weights_step" in training
        else None,
        "epochs": f"{training['num_train_epochs']:g}" if "num_train_epochs" in training else None,
        "head trained first": _probe_text(facts.get("probe")),
        "seed": training.get("seed"),
        "BatchNorm statistics": training.get("batch_norm"),
        "attack loss seen in training": _reach_text(training.get(REACH)),
        "command": facts.get("command"),
        "versions": ", ".join(f"{name} {value}" for name, value in (facts.get("versions") or {}).items()),
    }


def _autoattack_text(report: RobustnessReport) -> str | None:
    if report.autoattack_accuracy is None:
        return None
    low, high = report.confidence_intervals.get("autoattack_accuracy", (None, None))
    interval = "" if low is None else f" ({100 * low:.1f} to {100 * high:.1f})"
    doubt = "" if reliability_of_autoattack(report.reliability)["verdict"] == OK else " (doubtful)"
    return f"{report.autoattack_accuracy:.1%}{interval} of {report.autoattack_set}{doubt}"


def _probe_text(probe: dict[str, Any] | None) -> str | None:
    if probe is None:
        return None
    right = f"{probe['clean_accuracy']:.1%}, under attack {probe['adversarial_accuracy']:.1%}"
    return f"for {probe['epochs']:g} epochs, to {right} (validation)"


def _reach_text(reach: dict[str, float] | None) -> str | None:
    return None if reach is None else f"{reach['overall']:.0%} of what was found, at least {reach['lowest']:.0%}"


def _grid_text(epsilons: Sequence[float]) -> str:
    """A grid in short, "9 eps, every 2/255", or its points where they are not evenly spaced."""
    steps = np.diff(epsilons)
    if len(steps) > 1 and np.allclose(steps, steps[0], rtol=1e-6, atol=0):
        return f"{len(epsilons)} eps, every {format_eps(float(steps[0]))}"
    return ", ".join(map(format_eps, epsilons))
