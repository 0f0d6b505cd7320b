"""The files that let others see what was measured: report, pictures, card; of each task by its own drawers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hf_robust_ft.evaluation.detection.report import DetectionReport
from hf_robust_ft.evaluation.reliability import reliability_sentence
from hf_robust_ft.evaluation.report import RobustnessReport
from hf_robust_ft.evaluation.segmentation.report import SegmentationReport
from hf_robust_ft.reporting.card_sections import merge_cards
from hf_robust_ft.reporting.commands import (
    evaluate_command,
    evaluate_detection_command,
    evaluate_segmentation_command,
)
from hf_robust_ft.reporting.consistency import check_consistent
from hf_robust_ft.reporting.detection.card import check_consistent_detection, render_detection_card
from hf_robust_ft.reporting.detection.curves import plot_detection_curves
from hf_robust_ft.reporting.drawing import drawn
from hf_robust_ft.reporting.model_card import EXAMPLES, render_model_card
from hf_robust_ft.reporting.plots import plot_curves, plot_training
from hf_robust_ft.reporting.report_files import Report
from hf_robust_ft.reporting.segmentation.card import render_segmentation_card
from hf_robust_ft.reporting.segmentation.consistency import check_consistent_segmentation
from hf_robust_ft.reporting.segmentation.curves import plot_segmentation_curves
from hf_robust_ft.reporting.segmentation.verdict import segmentation_verdict
from hf_robust_ft.reporting.verdict import Verdict, verdict

REPORT_NAME = "robustness_report.json"
CARD_NAME = "README.md"
CURVE_NAME = "accuracy_eps_curve.png"
TRAINING_NAME = "training.png"
EXAMPLE_FILES = f"{EXAMPLES}/example_*.png"


class Drawers(NamedTuple):
    """What makes pictures and card of a task's reports, and what else differs between these.

    Args:
        plot: the curve, of (reports by name, path).
        card: the card's text, of (report, pictures).
        score: what the picture of training shows, by its name in logs.
        command: that measures a model as a report was, of (report, model, options).
        check: raises a ValueError where a report's figures do not belong together.
        verdict: whether a model may be called robust.
        reliability: whether the figures can be relied on, in a sentence or two.
    """

    plot: Callable[..., None]
    card: Callable[..., str]
    score: str
    command: Callable[..., str]
    check: Callable[[Any], None]
    verdict: Callable[[Any], Verdict | None]
    reliability: Callable[[Any], str] = reliability_sentence


DRAWERS: dict[type, Drawers] = {
    RobustnessReport: Drawers(plot_curves, render_model_card, "accuracy", evaluate_command, check_consistent, verdict),
    SegmentationReport: Drawers(
        plot_segmentation_curves,
        render_segmentation_card,
        "mean_iou",
        evaluate_segmentation_command,
        check_consistent_segmentation,
        segmentation_verdict,
    ),
    DetectionReport: Drawers(
        plot_detection_curves,
        render_detection_card,
        "map",
        evaluate_detection_command,
        check_consistent_detection,
        verdict=lambda report: None,
        reliability=lambda report: report.limits,  # nothing checks its figures
    ),
}


def write_evidence(
    report: Report,
    folder: str | Path,
    log_history: list[dict] | None = None,
    label: str = "this model",
    examples: Callable[[], Any] | None = None,
) -> None:
    """Write `robustness_report.json`, the curve, the training picture (given a log history) and the card.

    The report comes first; a picture that cannot be drawn is told in the log and left out.

    A card that is there already keeps what somebody wrote around our section. Pictures of training and of attacked
    images that are there already are shown.

    Args:
        report: what the card is rendered from.
        folder: usually the checkpoint's.
        log_history: `trainer.state.log_history`; without one no training picture is drawn.
        label: the curve's name in the legend.
        examples: draws attacked images into `folder`.

    Raises:
        ValueError: the card that is there cannot be added to; nothing of it was changed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    report.to_json(folder / REPORT_NAME)
    curve, training, drawers = folder / CURVE_NAME, folder / TRAINING_NAME, DRAWERS[type(report)]
    drawn("The accuracy-eps curve", lambda: drawers.plot({label: report}, curve), curve)
    if log_history:
        norm = report.threat_model["norm"]
        histories, score = {label: log_history}, drawers.score
        drawn("The picture of training", lambda: plot_training(histories, training, norm, score), training)
    if examples is not None:
        drawn("A picture of attacked images", examples)
    write_card(report, folder)


def write_card(report: Report, folder: str | Path, replace: Sequence[str] = ()) -> None:
    """Render the card of a folder's pictures, or update our section of the one that is there.

    Args:
        replace: metadata that are taken from the report even where somebody set them.

    Raises:
        ValueError: the card that is there cannot be added to.
    """
    card = Path(folder) / CARD_NAME
    existing = card.read_text(encoding="utf-8") if card.is_file() else None
    try:
        merged = merge_cards(existing, DRAWERS[type(report)].card(report, pictures_in(folder)), replace)
    except ValueError as error:
        raise ValueError(f"Our section cannot be added to {card}: {error}") from None
    card.write_text(merged, encoding="utf-8")


def pictures_in(folder: str | Path) -> list[str]:
    """The pictures that a card of this folder shows, in their order."""
    folder = Path(folder)
    found = [name for name in (CURVE_NAME, TRAINING_NAME) if (folder / name).is_file()]
    return found + [path.relative_to(folder).as_posix() for path in sorted(folder.glob(EXAMPLE_FILES))]
