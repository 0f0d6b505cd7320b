"""No picture that fails loses the report or the card."""

import json

import numpy as np
import pytest
import torch
from finished_run import report

from hf_robust_ft import RobustnessReport
from hf_robust_ft.evaluation.batches import stack_examples
from hf_robust_ft.reporting import artifacts, write_evidence
from hf_robust_ft.reporting.artifacts import CARD_NAME, CURVE_NAME, REPORT_NAME, TRAINING_NAME

HISTORY = [{"epoch": 1.0, "loss": 1.0, "eps": 0.0}, {"epoch": 1.0, "eval_clean_accuracy": 0.5}]


def fail(*_, **__):
    raise KeyError(3)


def replace(monkeypatch, name, draw):
    """Have a picture drawn by another function: the curve's is the task's, the training's that of all."""
    if name == "plot_curves":
        monkeypatch.setitem(
            artifacts.DRAWERS, RobustnessReport, artifacts.DRAWERS[RobustnessReport]._replace(plot=draw)
        )
    else:
        monkeypatch.setattr(artifacts, name, draw)


def test_the_report_is_there_before_any_picture_is_drawn(tmp_path, monkeypatch):
    seen = []

    def draw(*_):
        assert json.loads((tmp_path / REPORT_NAME).read_text())["num_samples"] == 200
        seen.append(1)

    for name in ("plot_curves", "plot_training"):
        replace(monkeypatch, name, draw)
    write_evidence(report(), tmp_path, HISTORY, examples=draw)
    assert len(seen) == 3


@pytest.mark.parametrize("failing", ["plot_curves", "plot_training", "examples"])
def test_a_picture_that_fails_is_told_in_one_line_and_the_rest_is_written(tmp_path, monkeypatch, caplog, failing):
    write_evidence(report(), tmp_path, HISTORY)  # an earlier run's
    caplog.clear()
    if failing != "examples":
        replace(monkeypatch, failing, fail)
    write_evidence(report(), tmp_path, HISTORY, examples=fail if failing == "examples" else None)
    assert [record.getMessage() for record in caplog.records] == [
        {
            "plot_curves": "The accuracy-eps curve could not be drawn and is left out (KeyError: 3).",
            "plot_training": "The picture of training could not be drawn and is left out (KeyError: 3).",
            "examples": "A picture of attacked images could not be drawn and is left out (KeyError: 3).",
        }[failing]
    ]
    missing = {"plot_curves": CURVE_NAME, "plot_training": TRAINING_NAME}.get(failing)
    card = (tmp_path / CARD_NAME).read_text()
    for picture in (CURVE_NAME, TRAINING_NAME):
        assert ((tmp_path / picture).is_file(), picture in card) == ((picture != missing),) * 2
    assert (tmp_path / REPORT_NAME).is_file()


def test_the_evidence_of_string_keys_bears_the_names(make_trainer, make_model, dataset, tmp_path):
    """As transformers' example scripts give `id2label`."""
    names, one_of_each = ["red", "green", "blue", "yellow"], dataset.select(range(4))
    model = make_model("resnet").eval()
    model.config.id2label = {str(index): name for index, name in enumerate(names)}
    with torch.no_grad():  # right about each of the four, so that all are shown
        features = model.resnet(stack_examples(list(one_of_each))["pixel_values"]).pooler_output.flatten(1)
        model.classifier[1].weight.copy_(torch.linalg.pinv(features).T)
        model.classifier[1].bias.zero_()
    trainer = make_trainer(model, eval_dataset=one_of_each)
    trainer.evaluate()
    trainer.save_model()
    trainer.create_model_card(finetuned_from=str(tmp_path), tasks="image-classification", tags=["vision"])
    rows = trainer.robustness_report.per_class
    assert [row["class"] for row in rows] == names
    with np.load(tmp_path / "out" / "examples" / "examples.npz") as examples:
        assert sorted(examples["labels"].tolist()) == sorted(names)
    card = (tmp_path / "out" / CARD_NAME).read_text()
    assert "| yellow |" in card and "examples/example_003.png" in card
    assert str(tmp_path) not in card and f"starting from {tmp_path.name}" in card


def test_examples_that_fail_lose_neither_report_nor_card(make_trainer, monkeypatch, tmp_path, caplog):
    trainer = make_trainer()
    trainer.evaluate()
    monkeypatch.setattr("hf_robust_ft.training.robust_evaluation.save_examples", fail)
    trainer.save_evidence()
    assert "A picture of attacked images could not be drawn" in caplog.text
    for name in (REPORT_NAME, CARD_NAME, CURVE_NAME, "provenance.json", "recipe.yaml"):
        assert (tmp_path / "out" / name).is_file(), name
