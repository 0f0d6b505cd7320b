"""A grid's cells beside the paper's: what it prints for them, and whether ours were trained and measured alike."""

from hf_robust_ft.attacks.threat_model import parse_eps
from hf_robust_ft.experiments.grid.comparison import Configuration, eps_of, split_of
from hf_robust_ft.experiments.grid.results import MeasuredCell
from hf_robust_ft.experiments.paper.numbers import Scores, paper_scores
from hf_robust_ft.models.backbones import BACKBONES

# What the paper tells of its training; batch size, rates and weight decay it does not print.
_PAPERS_TRAINING = {"num_train_epochs": 50, "attack_steps": 7, "attack_loss": "ce", "augmentation": "paper"}
_PAPERS_BATCH_NORM = {"batch_norm": "trainer"}  # of r50, the only backbone with any
_PAPERS_CORNERS = {"schedule_start": 0.24, "schedule_end": 0.74}  # of its schedule, our hinge


def paper_figure(norm: str, configuration: Configuration, setting: str) -> Scores | None:
    """What the paper prints for a cell; a backbone may be given by its Hub id as well."""
    by_hub_id = {backbone.hub_id: alias for alias, backbone in BACKBONES.items()}
    model = by_hub_id.get(configuration.model, configuration.model)
    if norm != "Linf":
        return None
    return paper_scores(model, configuration.dataset, parse_eps(configuration.eps), setting)


def is_measured_as_paper(result: MeasuredCell) -> bool:
    """Whether its first scores are measured as the paper's: Linf, APGD-10 (ce) at every 1/255, on the test split."""
    report = result.report
    used = (result.norm, report.protocol, result.attacks[0]["loss"], result.first_steps, split_of(result))
    points = round(255 * eps_of(result)) + 1
    return used == ("Linf", "paper", "ce", 10, "test") and len(report.epsilons) == points


def trained_otherwise(result: MeasuredCell) -> list[str]:
    """What of a cell's training is not the paper's, as far as the paper tells: "num_train_epochs 2 (paper: 50)"."""
    told = _PAPERS_TRAINING | (_PAPERS_CORNERS if result.setting == "hinge" else {})
    if result.model in ("r50", BACKBONES["r50"].hub_id):
        told |= _PAPERS_BATCH_NORM
    used = result.configuration
    changed = [name for name, value in told.items() if used.get(name, value) != value]
    fewer = [f"max_train_samples {used['max_train_samples']}"] if "max_train_samples" in used else []
    return [f"{name} {used[name]} (paper: {told[name]})" for name in changed] + fewer
