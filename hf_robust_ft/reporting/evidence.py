"""The files that let others see what was measured: report, pictures, card."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hf_robust_ft.reporting.model_card import render_model_card
from hf_robust_ft.reporting.plots import plot_curves, plot_training
from hf_robust_ft.reports import RobustnessReport

REPORT_NAME = "robustness_report.json"
CURVE_NAME = "accuracy_eps_curve.png"
TRAINING_NAME = "training.png"


def library_versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    versions = {"python": platform.python_version()}
    for package in ("hf_robust_ft", "torch", "transformers", "accelerate", "datasets", "timm"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def write_evidence(
    report: RobustnessReport, folder: str | Path, log_history: list[dict] | None = None, label: str = "this model"
) -> None:
    """Write `robustness_report.json`, the curve, the training picture (given a log history) and the card.

    Args:
        report: what the card is rendered from.
        folder: usually the checkpoint's.
        log_history: `trainer.state.log_history`; without one there is no training picture.
        label: the curve's name in the legend.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    report.to_json(folder / REPORT_NAME)
    plot_curves({label: report}, folder / CURVE_NAME)
    pictures = [CURVE_NAME]
    if log_history:
        plot_training({label: log_history}, folder / TRAINING_NAME)
        pictures.append(TRAINING_NAME)
    (folder / "README.md").write_text(render_model_card(report, pictures), encoding="utf-8")
