"""Subclasses that go past the attack are told before they train a step without it; correct ones are left alone."""

import pytest
import torch
from conftest import assert_same_weights, run_script, weights
from transformers import Trainer

from hf_robust_ft import AdversarialTrainer
from hf_robust_ft.data import with_pixel_values
from hf_robust_ft.training.adversary import Adversary

CLASS_WEIGHTS = torch.tensor([1.0, 2.0, 3.0, 1.0])


class OwnLoss(AdversarialTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(pixel_values=inputs["pixel_values"])
        loss = torch.nn.functional.cross_entropy(outputs.logits, inputs["labels"], weight=CLASS_WEIGHTS)
        return (loss, outputs) if return_outputs else loss


class PlainLoss(AdversarialTrainer):
    def compute_loss(self, *args, **kwargs):
        return Trainer.compute_loss(self, *args, **kwargs)


class OwnStep(AdversarialTrainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        loss = model(**self._prepare_inputs(inputs)).loss
        self.accelerator.backward(loss)
        return loss.detach()


class EvaluationMode(AdversarialTrainer):
    def compute_loss(self, model, inputs, *args, **kwargs):
        model.eval()
        return super().compute_loss(model, inputs, *args, **kwargs)


UNATTACKED = {
    OwnLoss: r"OwnLoss\.compute_loss did not call AdversarialTrainer's.*super\(\)\.compute_loss.*compute_loss_func=",
    PlainLoss: r"PlainLoss\.compute_loss did not call.*super\(\)\.compute_loss",
    OwnStep: r"OwnStep\.training_step did not call.*super\(\)\.training_step",
    EvaluationMode: r"model was in evaluation mode",
}


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("trainer_cls", UNATTACKED, ids=lambda each: each.__name__)
def test_a_step_without_its_attack_is_an_error_before_the_weights_change(
    make_trainer, make_model, trainer_cls, accumulation
):
    trainer = make_trainer(make_model(), trainer_cls, eps_schedule="constant", gradient_accumulation_steps=accumulation)
    before = weights(trainer.model)
    with pytest.raises(RuntimeError, match=r"optimizer step 1 of .* eps 8/255: .*" + UNATTACKED[trainer_cls]):
        trainer.train()
    assert_same_weights(trainer.model, before)


def test_under_a_schedule_it_is_told_at_the_first_step_and_refused_at_the_first_attack(
    make_trainer, make_model, caplog
):
    trainer = make_trainer(make_model(), OwnLoss)
    with pytest.raises(RuntimeError, match="No attack ran in optimizer step 7 of 24"):
        trainer.train()
    (told,) = [text for text in caplog.messages if text.startswith("No attack will run once eps rises")]
    assert "step 1 of 24" in told and "compute_loss_func=" in told


def test_a_per_sample_schedule_is_refused_at_once(make_trainer, make_model, images, processor):
    identified = with_pixel_values(images, processor, sample_ids=True)
    trainer = make_trainer(make_model(), OwnLoss, train_dataset=identified, eps_schedule="per_sample")
    trainer.args.label_names = ["labels"]
    with pytest.raises(RuntimeError, match="optimizer step 1 of"):
        trainer.train()


class Weighted(AdversarialTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        _, outputs = super().compute_loss(model, dict(inputs), return_outputs=True, **kwargs)
        loss = torch.nn.functional.cross_entropy(outputs.logits, inputs["labels"], weight=CLASS_WEIGHTS)
        return (loss, outputs) if return_outputs else loss


class Flipped(AdversarialTrainer):
    def compute_loss(self, model, inputs, *args, **kwargs):
        return super().compute_loss(model, {**inputs, "pixel_values": inputs["pixel_values"].flip(-1)}, *args, **kwargs)


class StepOfItsOwn(AdversarialTrainer):
    """Does what Trainer's does by itself, but for the loss."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        loss = self.compute_loss(model, self._prepare_inputs(inputs))
        self.accelerator.backward(loss)
        return loss.detach()


@pytest.mark.parametrize("trainer_cls", [Weighted, Flipped, StepOfItsOwn], ids=lambda each: each.__name__)
@pytest.mark.parametrize("changes", [{}, {"gradient_accumulation_steps": 2, "schedule_granularity": "step"}])
def test_what_calls_super_trains_with_attacks_and_without_a_word(
    make_trainer, make_model, monkeypatch, caplog, trainer_cls, changes
):
    attacks, attack = [], Adversary.attack

    def spy(*args, eps, **options):
        attacks.append(eps)
        return attack(*args, eps=eps, **options)

    monkeypatch.setattr(Adversary, "attack", spy)
    trainer = make_trainer(make_model(), trainer_cls, **changes)
    trainer.train()
    assert "eval_adversarial_accuracy" in trainer.evaluate()
    assert "No attack" not in caplog.text and "This evaluation measured" not in caplog.text
    assert len(attacks) > 10


def test_at_eps_zero_every_loss_is_right(make_trainer, make_model, caplog):
    make_trainer(make_model(), OwnLoss, eps="0", eval_epsilons=None, num_train_epochs=1).train()
    assert "attack" not in caplog.text


def test_a_step_that_hides_its_loss_from_the_schedule_is_refused(make_trainer, make_model):
    with pytest.raises(RuntimeError, match=r"loss_driven.*StepOfItsOwn\.training_step did not tell it"):
        make_trainer(make_model(), StepOfItsOwn, eps_schedule="loss_driven").train()


class OwnPrediction(AdversarialTrainer):
    def prediction_step(self, *args, **kwargs):
        return Trainer.prediction_step(self, *args, **kwargs)


class OwnLoop(AdversarialTrainer):
    def evaluation_loop(self, *args, **kwargs):
        return Trainer.evaluation_loop(self, *args, **kwargs)


@pytest.mark.parametrize(
    ("trainer_cls", "method"), [(OwnPrediction, "OwnPrediction.prediction_step"), (OwnLoop, "OwnLoop.evaluation_loop")]
)
def test_an_evaluation_that_goes_past_ours_is_told(make_trainer, make_model, caplog, trainer_cls, method):
    metrics = make_trainer(make_model(), trainer_cls).evaluate()
    assert f"measured no robustness: {method} did not call" in caplog.text
    assert "eval_adversarial_accuracy" not in metrics


DISTRIBUTED = """
from hf_robust_ft import AdversarialTrainer

class OwnLoss(AdversarialTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return model(**inputs).loss

make_trainer(make_model(), OwnLoss, eps_schedule="constant", num_train_epochs=1, gradient_accumulation_steps=2).train()
"""


def test_every_process_of_several_refuses(tmp_path):
    result = run_script(DISTRIBUTED, tmp_path / "two", processes=2)
    assert result.returncode != 0 and result.stderr.count("RuntimeError: No attack ran in optimizer step 1 of 2") >= 1
