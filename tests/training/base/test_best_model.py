"""The best model of a run whose eps changes, early stopping, and what is said of the weights that training returns."""

from pathlib import Path

import pytest
from conftest import assert_same_weights, weights
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from hf_robust_ft.reporting.model_card import render_model_card

# 8 epochs of 2 steps, at these shares of 8/255: 0, 0, 0, 0.5, then 1.
HINGE = {"num_train_epochs": 8, "schedule_start": 0.25, "schedule_end": 0.5}
SCORES = (0.9, 0.9, 0.95, 0.8, 0.5, 0.7, 0.6, 0.4)  # clean, after each epoch
SELECTING = {
    "eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True, "learning_rate": 1e-2,
}  # fmt: skip


class Keep(TrainerCallback):
    def __init__(self):
        self.weights = {}

    def on_save(self, args, state, control, model=None, **kwargs):
        self.weights[state.global_step] = weights(model)


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_training_stop = control.should_training_stop or state.global_step == self.step


@pytest.fixture
def selecting(make_trainer, make_model, dataset):
    """A trainer whose evaluations of epochs 1, 2, ... measure the given scores, without attacks."""

    def make(scores=SCORES, metric="score", trainer_cls=None, **changes):
        def compute_metrics(prediction):
            epoch = round(trainer.state.global_step / 2)
            return {metric: scores[max(epoch, 1) - 1]}

        few = dataset.select(range(16))
        settings = {"train_dataset": few, "eval_dataset": few, "robust_eval": "no", "metric_for_best_model": metric}
        settings |= HINGE | SELECTING | changes
        if trainer_cls is not None:
            settings["trainer_cls"] = trainer_cls
        trainer = make_trainer(make_model(), compute_metrics=compute_metrics, **settings)
        return trainer

    return make


@pytest.mark.parametrize("changes", [{}, {"save_strategy": "best"}, {"save_total_limit": 1}])
def test_the_best_by_a_clean_metric_is_one_trained_at_the_target(selecting, changes):
    keep = Keep()
    trainer = selecting(callbacks=[keep], **changes)
    trainer.train()
    assert trainer.state.best_global_step == 12 and trainer.state.best_metric == 0.7
    assert Path(trainer.state.best_model_checkpoint).name == "checkpoint-12"
    assert Path(trainer.state.best_model_checkpoint).is_dir()
    assert_same_weights(trainer.model, keep.weights[12])
    if changes.get("save_strategy") == "best":  # a larger eps is better, then the metric
        assert sorted(keep.weights) == [2, 6, 8, 10, 12]


def test_log_report_and_card_say_which_weights_they_are(selecting):
    trainer = selecting(robust_eval="end")
    trainer.train()
    last = trainer.state.log_history[-1]
    assert (last["best_model_step"], last["best_model_eps"]) == (12, 8 / 255)
    trainer.evaluate()
    training = trainer.robustness_report.metadata["training"]
    assert (training["weights_step"], training["weights_eps"]) == (12, "8/255")
    card = render_model_card(trainer.robustness_report)
    assert "The weights are those of step 12, trained at eps 8/255: the best by score." in card
    assert "These weights were trained at eps" not in card


def test_weights_below_the_target_are_told_in_log_report_and_card(selecting, caplog):
    trainer = selecting(robust_eval="end", callbacks=[StopAt(6)])
    trainer.train()
    assert "best model by score is of step 6 of 16, trained at eps 0, below 8/255" in caplog.text
    trainer.evaluate()
    assert trainer.robustness_report.metadata["training"]["weights_eps"] == "0"
    assert "**These weights were trained at eps 0** (step 6), below the 8/255" in render_model_card(
        trainer.robustness_report
    )


@pytest.mark.parametrize(("changes", "said"), [({"callbacks": [StopAt(6)]}, True), ({}, False)])
def test_a_card_does_not_say_that_weights_of_eps_0_were_trained_on_attacked_images(selecting, changes, said):
    trainer = selecting(robust_eval="end", **changes)
    trainer.train()
    trainer.evaluate()
    card = render_model_card(trainer.robustness_report)
    assert ("fine-tuned at eps 0 and measured on images of which an attacker changed" in card) == said
    assert any(f"fine-tuned {words}" in card for words in ("on images of which", "to keep its answer")) != said


def test_an_eps_on_the_way_reads_as_255ths(selecting, caplog, capsys):
    trainer = selecting(eps_schedule="linear_warmup", callbacks=[StopAt(6)])
    trainer.train()
    eps = trainer.scheduler_callback.eps_at(5, trainer.state.max_steps)
    assert 0 < eps < 8 / 255 and f"{255 * eps:.3g}/255" == trainer.described_weights()["weights_eps"]
    assert f"trained at eps {255 * eps:.3g}/255, below 8/255" in caplog.text
    assert f"'best_model_eps': '{255 * eps:.3g}/255'" in capsys.readouterr().out
    assert trainer.state.log_history[-1]["best_model_eps"] == pytest.approx(eps)


def test_the_last_weights_are_told_too(make_trainer, make_model):
    trainer = make_trainer(make_model(), num_train_epochs=1, callbacks=[])
    assert "weights_step" not in trainer.facts()["training"]
    trainer.train()
    described = trainer.facts()["training"]
    assert (described["weights_step"], described["weights_eps"]) == (6, "0") and "weights_chosen_by" not in described


def test_weights_of_the_largest_eps_that_were_never_evaluated_are_not_given_up(selecting, caplog):
    class Interrupt(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            self.weights = weights(model)
            control.should_training_stop = state.global_step == 13

    interrupt = Interrupt()
    steps = {"eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps", "save_steps": 4}
    trainer = selecting(schedule_granularity="step", schedule_end=0.9, callbacks=[interrupt], **steps)
    trainer.train()
    assert_same_weights(trainer.model, interrupt.weights)
    assert trainer.state.best_model_checkpoint is None and "training returns the last weights" in caplog.text
    assert trainer.facts()["training"]["weights_step"] == 13


@pytest.mark.parametrize("saved", [8, 12])
def test_the_best_of_an_unsaved_evaluation_does_not_keep_an_earlier_checkpoint(selecting, saved):
    """Where only every second evaluation is saved, the first at a larger eps may be one that cannot be loaded."""
    scores = {8: SCORES, 12: (0.9, 0.9, 0.95, 0.8, 0.99, 0.7, 0.6, 0.4)}[saved]
    trainer = selecting(
        scores,
        schedule_end={8: 0.3, 12: 0.5}[saved],
        **{"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 4},
    )
    trainer.train()
    assert Path(trainer.state.best_model_checkpoint).name == f"checkpoint-{saved}"


@pytest.mark.parametrize("restores", [False, True])
@pytest.mark.parametrize("cut", [6, 10, 14])
def test_a_resumed_run_chooses_as_an_uninterrupted_one(selecting, cut, restores):
    settings = {"save_total_limit": 2, "restore_callback_states_from_checkpoint": restores}
    selecting(callbacks=[StopAt(cut)], **settings).train()
    resumed = selecting(**settings)
    resumed.train(resume_from_checkpoint=f"{resumed.args.output_dir}/checkpoint-{cut}")
    assert resumed.state.best_global_step == 12 and resumed.facts()["training"]["weights_step"] == 12


@pytest.mark.parametrize("resumed_at", [None, 4, 8, 10])
def test_early_stopping_counts_from_the_first_evaluation_at_the_target(selecting, resumed_at):
    settings = {"restore_callback_states_from_checkpoint": True}
    if resumed_at is not None:
        selecting(callbacks=[EarlyStoppingCallback(1), StopAt(resumed_at)], **settings).train()
    trainer = selecting(callbacks=[EarlyStoppingCallback(1)], **settings)
    trainer.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-{resumed_at}" if resumed_at else None)
    assert trainer.state.global_step == 14 and trainer.state.best_global_step == 12


def test_a_robust_metric_decides_by_itself_and_early_stopping_still_waits(selecting):
    trainer = selecting(
        (0.5, 0.3, 0.2, 0.1, 0.1, 0.05, 0.05, 0.05),
        metric="own_adversarial_accuracy",
        robust_eval="epoch",
        eval_epsilons=["0", "8/255"],
        eval_attack_steps=1,
    )
    trainer.add_callback(EarlyStoppingCallback(1))
    trainer.train()
    assert trainer.state.best_global_step == 2 and trainer.state.global_step == 12
    assert trainer.facts()["training"]["weights_eps"] == "0"


@pytest.mark.parametrize("own", [{"eps_schedule": "constant"}, {"eps": "0", "eval_epsilons": None}])
def test_at_one_eps_it_is_as_in_plain_trainer(selecting, make_args, own):
    ours = selecting(callbacks=[EarlyStoppingCallback(2)], **own)
    args = make_args(TrainingArguments, num_train_epochs=8, metric_for_best_model="score", **SELECTING)
    plain = selecting(trainer_cls=Trainer, args=args, callbacks=[EarlyStoppingCallback(2)])
    for trainer in (ours, plain):
        trainer.train()
    assert (ours.state.global_step, ours.state.best_global_step) == (10, 6)
    assert (plain.state.global_step, plain.state.best_global_step) == (10, 6)


def test_draws_of_eps_count_alike(selecting):
    trainer = selecting(eps_schedule="uniform")
    trainer.train()
    assert trainer.state.best_global_step == 6 and trainer.facts()["training"]["weights_eps"] == "8/255"


def test_the_best_of_one_of_several_eval_sets(make_trainer, make_model, dataset):
    keep = Keep()
    trainer = make_trainer(
        make_model(),
        callbacks=[keep],
        eval_dataset={"a": dataset.select(range(16)), "b": dataset.select(range(16, 32))},
        num_train_epochs=2,
        eval_attack_steps=1,
        robust_eval="epoch",
        metric_for_best_model="eval_b_adversarial_accuracy",
        **SELECTING,
    )
    trainer.train()
    seen = {
        entry["step"]: entry["eval_b_adversarial_accuracy"]
        for entry in trainer.state.log_history
        if "eval_b_adversarial_accuracy" in entry
    }
    assert trainer.state.best_metric == max(seen.values()) == seen[trainer.state.best_global_step]
    assert_same_weights(trainer.model, keep.weights[trainer.state.best_global_step])
