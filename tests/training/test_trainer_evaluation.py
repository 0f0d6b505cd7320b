"""What the report of `AdversarialTrainer.evaluate` holds."""

from collections import namedtuple
from functools import partial

import pytest
import torch
from conftest import assert_same_weights, weights
from short_search import CHECKED_IMAGES
from transformers.modeling_outputs import ImageClassifierOutput

import hf_robust_ft.training.robust_evaluation
from hf_robust_ft import AdversarialTrainer, PixelSpace, ThreatModel, evaluate_robustness
from hf_robust_ft.evaluation.trust_checks import run_trust_checks
from hf_robust_ft.evaluation.trust_verdicts import OPENINGS


@pytest.mark.parametrize("robust_eval", ["end", "epoch", "no"])
def test_trust_checks_are_made_after_training_and_not_in_it(make_trainer, make_model, monkeypatch, robust_eval):
    checked = []

    def spy(logits_fn, pixels, labels, *args, **options):
        checked.append((len(labels), trainer.is_in_train))
        return run_trust_checks(logits_fn, pixels, labels, *args, **options)

    monkeypatch.setattr(hf_robust_ft.training.robust_evaluation, "run_trust_checks", spy)
    trainer = make_trainer(make_model("resnet"), robust_eval=robust_eval, eval_strategy="epoch", num_train_epochs=2)
    trainer.train()
    assert checked == []
    if robust_eval == "epoch":
        assert trainer.robustness_report.checks == []
        assert [entry["eval_reliable"] for entry in trainer.state.log_history if "eval_loss" in entry] == [0.0, 0.0]
    before = weights(trainer.model)
    metrics = trainer.evaluate()
    if robust_eval == "no":
        assert checked == [] and trainer.robustness_report is None
        return
    assert checked == [(CHECKED_IMAGES, False)]
    assert [check["name"] for check in trainer.robustness_report.checks] == list(OPENINGS)
    assert metrics["eval_reliable"] == (trainer.robustness_report.reliability["verdict"] == "ok")
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
    assert "measured in bf16, in which attacks find fewer errors" in (tmp_path / "out" / "README.md").read_text()
    whole = make_trainer(output_dir=str(tmp_path / "whole"))
    whole.evaluate()
    assert "evaluated_in" not in whole.robustness_report.metadata
    rounded = make_trainer(output_dir=str(tmp_path / "rounded"), bf16_full_eval=True)
    rounded.evaluate()
    assert rounded.robustness_report.metadata["evaluated_in"] == "bf16"


class FeaturesFirst(torch.nn.Module):
    """Right about every image of one grey; `features` point the other way. `form` makes the output of its entries."""

    def __init__(self, form):
        super().__init__()
        self.scale, self.form = torch.nn.Parameter(torch.ones(())), form

    def forward(self, pixel_values, labels=None):
        grey = pixel_values.mean((1, 2, 3))
        logits = self.scale * 10 * torch.stack([grey * (k / 4) - (k / 4) ** 2 / 2 for k in range(4)], 1)
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
        return self.form(loss, -logits, logits)


def as_dict(loss, features, logits):
    return {"features": features, "logits": logits} | ({} if loss is None else {"loss": loss})


def as_tuple(loss, features, logits):
    return tuple(each for each in (loss, features[:, :, None], logits) if each is not None)


FORMS = {
    "dict": as_dict,
    "named tuple": namedtuple("Named", "loss features logits"),
    "hidden states": lambda loss, features, logits: ImageClassifierOutput(loss, logits, (features, features)),
    "tuple": as_tuple,
}
GREYS = [{"pixel_values": torch.full((3, 8, 8), k / 4), "labels": k} for k in range(4)]


class OwnLoss(AdversarialTrainer):
    """Without ours where nothing is attacked."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        outputs = model(**inputs)
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("changes", [{}, {"per_device_eval_batch_size": 3}], ids=["one batch", "two"])
def test_clean_accuracy_is_that_of_the_logits_wherever_they_stand(make_trainer, form, changes):
    trainer = make_trainer(
        FeaturesFirst(FORMS[form]),
        trainer_cls=partial(AdversarialTrainer, pixel_space=PixelSpace()),
        eval_dataset=GREYS,
        **changes,
    )
    assert trainer.evaluate()["eval_clean_accuracy"] == 1
    threat_model = ThreatModel("Linf", "8/255")
    assert evaluate_robustness(trainer.model, GREYS, threat_model=threat_model, progress=False).clean_accuracy == 1


def test_what_others_make_of_the_outputs_does_not_matter(make_trainer):
    """`compute_metrics` gets what it gets from plain Trainer; what it leaves out is measured all the same."""
    seen = []
    model, ours = (
        FeaturesFirst(as_dict),
        {"eval_dataset": GREYS, "compute_metrics": lambda found: seen.append(found) or {}},
    )
    space = {"pixel_space": PixelSpace()}
    for kind in (AdversarialTrainer, OwnLoss):
        trainer = make_trainer(model, trainer_cls=partial(kind, **space), **ours)
        assert trainer.evaluate()["eval_clean_accuracy"] == 1
        features, logits = seen[-1].predictions
        assert (features == -logits).all() and (logits.argmax(1) == seen[-1].label_ids).all()
        assert trainer.evaluate(ignore_keys=["logits"])["eval_clean_accuracy"] == 1
        assert (seen[-1].predictions == features).all()
