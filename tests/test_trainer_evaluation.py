"""What the report of `AdversarialTrainer.evaluate` holds."""

import pytest
from conftest import assert_same_weights, weights

import hf_robust_ft.evaluating_trainer
from hf_robust_ft.trust_checks import OPENINGS, run_trust_checks


@pytest.mark.parametrize("robust_eval", ["end", "epoch", "no"])
def test_trust_checks_are_made_after_training_and_not_in_it(make_trainer, make_model, monkeypatch, robust_eval):
    checked = []

    def spy(logits_fn, pixels, labels, *args, **options):
        checked.append((len(labels), trainer.is_in_train))
        return run_trust_checks(logits_fn, pixels, labels, *args, **options)

    monkeypatch.setattr(hf_robust_ft.evaluating_trainer, "run_trust_checks", spy)
    trainer = make_trainer(make_model("resnet"), robust_eval=robust_eval, eval_strategy="epoch", num_train_epochs=2)
    trainer.train()
    assert checked == []
    if robust_eval == "epoch":
        assert trainer.robustness_report.checks == []
    before = weights(trainer.model)
    trainer.evaluate()
    if robust_eval == "no":
        assert checked == [] and trainer.robustness_report is None
        return
    assert checked == [(48, False)]
    assert [check["name"] for check in trainer.robustness_report.checks] == list(OPENINGS)
    assert_same_weights(before, trainer.model)


def test_the_report_of_an_evaluation_is_whole(make_trainer, make_model):
    trainer = make_trainer(make_model("resnet"))
    trainer.evaluate()
    report = trainer.robustness_report
    assert len(report.smallest_epsilons) == 48 and report.confidence_intervals["level"] == 0.95
    assert [(row["class"], row["samples"]) for row in report.per_class] == [(f"LABEL_{i}", 12) for i in range(4)]


def test_what_is_measured_in_half_precision_says_so(make_trainer, caplog, tmp_path):
    """bf16 of training holds in its evaluation, whose attacks are weaker then."""
    trainer = make_trainer(bf16=True, num_train_epochs=1)
    trainer.train()
    assert "Measured in bf16" not in caplog.text
    trainer.evaluate()
    assert "Measured in bf16: attacks" in caplog.text and "hf-robust-ft evaluate" in caplog.text
    assert trainer.robustness_report.metadata["evaluated_in"] == "bf16"
    trainer.save_model()
    trainer.save_evidence()
    assert "**Measured in bf16**" in (tmp_path / "out" / "README.md").read_text()
    whole = make_trainer(output_dir=str(tmp_path / "whole"))
    whole.evaluate()
    assert "evaluated_in" not in whole.robustness_report.metadata
    rounded = make_trainer(output_dir=str(tmp_path / "rounded"), bf16_full_eval=True)
    rounded.evaluate()
    assert rounded.robustness_report.metadata["evaluated_in"] == "bf16"
