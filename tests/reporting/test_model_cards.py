"""Every committed card is what its JSON renders to, and shows pictures that are there."""

import json
import re
import shlex

import pytest
from conftest import REPOSITORY

from hf_robust_ft import RobustnessReport
from hf_robust_ft.cli.main import main
from hf_robust_ft.metrics.robustness.curve import expected_robustness
from hf_robust_ft.reporting import render_model_card

CARDS = sorted(path.parent for path in (REPOSITORY / "model_cards").glob("*/robustness_report.json"))


def test_the_quickstart_has_a_card():
    assert "quickstart" in [folder.name for folder in CARDS]


@pytest.mark.parametrize("folder", CARDS, ids=lambda folder: folder.name)
def test_card_renders_from_its_json(folder):
    report = RobustnessReport.from_json(folder / "robustness_report.json")
    card = (folder / "README.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", card)
    assert render_model_card(report, pictures) == card
    assert pictures and all((folder / picture).is_file() for picture in pictures)


@pytest.mark.slow  # the training of the card's own command
def test_the_quickstart_card_can_be_made_again(tmp_path):
    (folder,) = [folder for folder in CARDS if folder.name == "quickstart"]
    stated = RobustnessReport.from_json(folder / "robustness_report.json")
    _, *words = shlex.split(stated.metadata["command"])
    main([*words, "--output_dir", str(tmp_path / "run")])
    found = RobustnessReport.from_json(tmp_path / "run" / "robustness_report.json")
    # Where the doubled steps settle may differ by a round.
    attacks = [{**report.attack, "steps": report.convergence["limit"]} for report in (found, stated)]
    assert (found.epsilons, attacks[0], found.num_samples) == (stated.epsilons, attacks[1], stated.num_samples)
    # Other threads and libraries round otherwise, and training amplifies that: as far apart as its seeds are.
    scores = json.loads((folder / "comparison.json").read_text())["hinge"].values()
    for name in ("clean_accuracy", "adversarial_accuracy", "expected_robustness"):
        seeds = [score[name] for score in scores]
        room = 2 * max(max(seeds) - min(seeds), 0.01)
        assert abs(getattr(found, name) - getattr(stated, name)) <= room, name


@pytest.mark.parametrize("folder", CARDS, ids=lambda folder: folder.name)
def test_reported_numbers_follow_from_the_curve(folder):
    report = RobustnessReport.from_json(folder / "robustness_report.json")
    assert report.expected_robustness == expected_robustness(report.accuracies, report.epsilons)
    assert (report.clean_accuracy, report.adversarial_accuracy) == (report.accuracies[0], report.accuracies[-1])
    hits = [accuracy * report.num_samples for accuracy in report.accuracies]
    assert all(abs(hit - round(hit)) < 1e-6 for hit in hits)
