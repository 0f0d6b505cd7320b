"""The files that let others see what was measured: report, pictures, card."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hf_robust_ft.evaluation.report import RobustnessReport
from hf_robust_ft.reporting.card_sections import merge_cards
from hf_robust_ft.reporting.drawing import drawn
from hf_robust_ft.reporting.model_card import EXAMPLES, render_model_card
from hf_robust_ft.reporting.plots import plot_curves, plot_training

REPORT_NAME = "robustness_report.json"
CARD_NAME = "README.md"
CURVE_NAME = "accuracy_eps_curve.png"
TRAINING_NAME = "training.png"
EXAMPLE_FILES = f"{EXAMPLES}/example_*.png"


def write_evidence(
    report: RobustnessReport,
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
    curve, training = folder / CURVE_NAME, folder / TRAINING_NAME
    drawn("The accuracy-eps curve", lambda: plot_curves({label: report}, curve), curve)
    if log_history:
        norm = report.threat_model["norm"]
        drawn("The picture of training", lambda: plot_training({label: log_history}, training, norm), training)
    if examples is not None:
        drawn("A picture of attacked images", examples)
    write_card(report, folder)


def write_card(report: RobustnessReport, folder: str | Path, replace: Sequence[str] = ()) -> None:
    """Render the card of a folder's pictures, or update our section of the one that is there.

    Args:
        replace: metadata that are taken from the report even where somebody set them.

    Raises:
        ValueError: the card that is there cannot be added to.
    """
    card = Path(folder) / CARD_NAME
    existing = card.read_text(encoding="utf-8") if card.is_file() else None
    try:
        merged = merge_cards(existing, render_model_card(report, pictures_in(folder)), replace)
    except ValueError as error:
        raise ValueError(f"Our section cannot be added to {card}: {error}") from None
    card.write_text(merged, encoding="utf-8")


def pictures_in(folder: str | Path) -> list[str]:
    """The pictures that a card of this folder shows, in their order."""
    folder = Path(folder)
    found = [name for name in (CURVE_NAME, TRAINING_NAME) if (folder / name).is_file()]
    return found + [path.relative_to(folder).as_posix() for path in sorted(folder.glob(EXAMPLE_FILES))]
