"""The model card of a detection checkpoint, rendered from its report and nothing else; experimental."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hf_robust_ft.attacks.threat_model import format_eps
from hf_robust_ft.evaluation.detection.report import TASK, DetectionReport
from hf_robust_ft.provenance.plain_text import markdown
from hf_robust_ft.reporting.card_sections import BEGIN, END
from hf_robust_ft.reporting.card_template import card_from, hub_metadata
from hf_robust_ft.reporting.commands import evaluate_detection_command, how_to_measure_again, model_to_name
from hf_robust_ft.reporting.comparability import UNNAMED_DATASET
from hf_robust_ft.reporting.consistency import ROUNDING
from hf_robust_ft.reporting.model_card import TAG, THREATS

TEMPLATE = Path(__file__).parent / "card_template.md"


def render_detection_card(report: DetectionReport, pictures: Sequence[str] = ()) -> str:
    """The text of `README.md`: Hub metadata and the card. No figure goes to the `model-index`, which tells no limits.

    Args:
        report: what its facts leave out, the card does too (`RunFacts`).
        pictures: file names beside the card to show.
    """
    facts = report.metadata
    norm, eps = report.threat_model["norm"], format_eps(report.threat_model["eps"])
    subject = facts.get("base_model_text") or facts.get("base_model")
    title = "Detection model, adversarially fine-tuned"
    if not facts.get("training"):
        title = f"Robustness of {subject or 'a detection model'}"
    data = hub_metadata(facts, title, TASK, [TAG, "adversarial-robustness"])
    command = evaluate_detection_command(report, model_to_name(facts))
    card = card_from(
        TEMPLATE,
        data,
        report=report,
        facts=facts,
        title=facts.get("model_name") or title,
        subject=subject,
        text=markdown,
        training=facts.get("training", {}),
        norm=norm,
        eps=eps,
        threat=THREATS[norm].format(eps=eps).replace("\n", " "),
        dataset=facts.get("dataset_name") or facts.get("dataset") or UNNAMED_DATASET,
        pictures=pictures,
        model=model_to_name(facts),
        again=how_to_measure_again(command, extra="detection"),
        evaluate_command=command,
        begin=BEGIN,
        end=END,
        percent=lambda value: f"{100 * value:.2f} %",
        curve=list(zip(map(format_eps, report.epsilons), report.maps, report.maps_50, strict=True)),
    )
    return str(card).rstrip() + "\n"


def check_consistent_detection(report: DetectionReport) -> None:
    """Refuse a report whose figures do not follow from its own curves.

    Raises:
        ValueError: a curve of another length than the grid, or scores that the curves do not give.
    """
    epsilons = np.array(report.epsilons)
    for curve, score in (("maps", "map"), ("maps_50", "map_50")):
        values = np.array(getattr(report, curve))
        if values.shape != epsilons.shape:
            raise ValueError(f"Its {curve} have {len(values)} points for {len(epsilons)} eps.")
        follows = {f"clean_{score}": values[0], f"adversarial_{score}": values[-1]}
        if epsilons[-1] > 0:
            follows[f"expected_{score}"] = np.trapezoid(values, epsilons) / epsilons[-1]
        for name, value in follows.items():
            if not abs(getattr(report, name) - value) <= ROUNDING:
                raise ValueError(f"Its {name} is {getattr(report, name)}, but its curve gives {value:.6f}.")
