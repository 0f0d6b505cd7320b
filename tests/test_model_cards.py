"""Every committed card is what its JSON renders to, and shows pictures that are there."""

import re
from pathlib import Path

import pytest

from hf_robust_ft import RobustnessReport
from hf_robust_ft.metrics.robustness.curve import expected_robustness
from hf_robust_ft.reporting import render_model_card

CARDS = sorted(path.parent for path in (Path(__file__).parent.parent / "model_cards").glob("*/README.md"))


def test_the_quickstart_has_a_card():
    assert "quickstart" in [folder.name for folder in CARDS]


@pytest.mark.parametrize("folder", CARDS, ids=lambda folder: folder.name)
def test_card_renders_from_its_json(folder):
    report = RobustnessReport.from_json(folder / "robustness_report.json")
    card = (folder / "README.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", card)
    assert render_model_card(report, pictures) == card
    assert pictures and all((folder / picture).is_file() for picture in pictures)


@pytest.mark.parametrize("folder", CARDS, ids=lambda folder: folder.name)
def test_reported_numbers_follow_from_the_curve(folder):
    report = RobustnessReport.from_json(folder / "robustness_report.json")
    assert report.expected_robustness == expected_robustness(report.accuracies, report.epsilons)
    assert (report.clean_accuracy, report.adversarial_accuracy) == (report.accuracies[0], report.accuracies[-1])
    hits = [accuracy * report.num_samples for accuracy in report.accuracies]
    assert all(abs(hit - round(hit)) < 1e-6 for hit in hits)
