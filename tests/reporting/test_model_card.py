import re

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from hf_robust_ft import RobustnessReport
from hf_robust_ft.reporting import plot_curves, plot_training, render_model_card, write_evidence

HISTORY = [
    {"epoch": 1.0, "step": 5, "loss": 1.0, "eps": 0.0},
    {"epoch": 1.0, "step": 5, "eval_clean_accuracy": 0.5, "eps": 0.0},
    {"epoch": 2.0, "step": 10, "loss": 0.8, "eps": 4 / 255},
    {"epoch": 2.0, "step": 10, "eval_clean_accuracy": 0.7, "eval_adversarial_accuracy": 0.3, "eps": 4 / 255},
    {"train_runtime": 3.0, "epoch": 2.0, "step": 10, "eps": 4 / 255},
]


@pytest.fixture
def report():
    return RobustnessReport(
        clean_accuracy=0.9,
        adversarial_accuracy=0.5,
        expected_robustness=0.7,
        epsilons=[0.0, 2 / 255, 4 / 255],
        accuracies=[0.9, 0.7, 0.5],
        threat_model={"norm": "Linf", "eps": 4 / 255},
        attack={"steps": 10, "loss": "ce", "random_start": False, "restarts": 1, "select": "fooled"},
        protocol="paper",
        num_samples=200,
        metadata={
            "model_name": "Swin on flowers",
            "base_model": "microsoft/swin-tiny-patch4-window7-224",
            "dataset": "someone/flowers",
            "dataset_on_hub": True,
            "split": "test",
            "training": {"eps": "4/255", "eps_schedule": "hinge"},
            "versions": {"torch": "2.14.1"},
            "command": "hf-robust-ft train --config paper_default",
        },
    )


def test_metadata_is_what_the_hub_reads(report):
    card = ModelCard(render_model_card(report, ["curve.png"]))
    data = card.data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-classification")
    assert data.base_model == "microsoft/swin-tiny-patch4-window7-224" and data.datasets == ["someone/flowers"]
    assert {"hf_robust_ft", "adversarial-robustness", "Linf-4-over-255"} <= set(data.tags)
    assert data.license is None
    results = {result.metric_type: result for result in data.eval_results}
    assert {kind: result.metric_value for kind, result in results.items()} == {
        "accuracy": 0.9, "adversarial_accuracy": 0.5, "expected_robustness": 0.7,
    }  # fmt: skip
    assert results["adversarial_accuracy"].metric_args == {
        "norm": "Linf", "eps": "4/255", "attack": "APGD-CE-10", "protocol": "paper", "samples": 200,
    }  # fmt: skip


def test_body_says_what_was_measured_and_how_far_to_trust_it(report):
    text = render_model_card(report, ["curve.png"])
    for part in (
        "# Swin on flowers", "90.00 %", "50.00 %", "70.00 %", "by up to 4/255 of the",
        "APGD-CE-10 from the clean image", "200 images of someone/flowers (test split)",
        "![curve.png](curve.png)", "| eps_schedule | hinge |",
        "`hf-robust-ft train --config paper_default`", "torch 2.14.1.", "not a certificate",
    ):  # fmt: skip
        assert part in text, part
    assert "{{" not in text and "{%" not in text and "\n\n\n" not in text


def test_a_card_without_metadata_is_whole(report):
    bare = RobustnessReport(**{**report.__dict__, "metadata": {}})
    text = render_model_card(bare)
    assert "# Robust image classifier" in text and "None" not in text and "## Training" not in text
    assert ModelCard(text).data.base_model is None


def test_evidence_is_complete(report, tmp_path):
    write_evidence(report, tmp_path / "run", HISTORY)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"robustness_report.json", "accuracy_eps_curve.png", "training.png", "README.md"}
    assert RobustnessReport.from_json(tmp_path / "run" / "robustness_report.json") == report
    shown = re.findall(r"!\[.*?\]\((.*?)\)", (tmp_path / "run" / "README.md").read_text())
    assert set(shown) <= names and len(shown) == 2


def test_pictures_are_drawn_and_repeat_byte_for_byte(report, tmp_path):
    for attempt in ("a", "b"):
        plot_curves({"hinge": report, "fix": report}, tmp_path / f"curve_{attempt}.png")
        plot_training({"hinge": HISTORY}, tmp_path / f"training_{attempt}.png")
    for name in ("curve", "training"):
        first, second = ((tmp_path / f"{name}_{attempt}.png").read_bytes() for attempt in ("a", "b"))
        assert first == second
        colours = Image.open(tmp_path / f"{name}_a.png").convert("RGB").getcolors(maxcolors=1 << 20)
        assert len(colours) > 20  # axes, text and lines, not a blank page
