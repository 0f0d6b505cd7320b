"""A search on the embedded default, shrunk: EfficientNet-Lite0 and a few handwritten digits."""

import sys

import pytest
import yaml
from conftest import assert_same_weights, weights

from hf_robust_ft import AdversarialTrainer, EpsilonSchedulerCallback
from hf_robust_ft.data import load_image_dataset, with_pixel_values
from hf_robust_ft.evaluation.batches import stack_examples
from hf_robust_ft.experiments.rate_search import search_learning_rates
from hf_robust_ft.models import load_image_classifier
from hf_robust_ft.runs.recipes import parse_recipe
from hf_robust_ft.training.arguments import AdversarialTrainingArguments


@pytest.fixture(scope="module")
def digits():
    splits = load_image_dataset("digits")
    return splits["train"].select(range(64)), splits["validation"].select(range(64))


@pytest.fixture
def make_searched(make_args, digits):
    """A trainer whose `model_init` notes the weights it returns in the list given."""

    def make(started_from: list):
        train, validation = digits
        options = {"label_names": train.features["label"].names, "image_size": 32}
        _, processor = load_image_classifier("efficientnet_lite0", **options)

        def model_init():
            model, _ = load_image_classifier("efficientnet_lite0", **options)
            started_from.append(weights(model))
            return model

        settings = {"num_train_epochs": 1, "per_device_train_batch_size": 16, "eps": "4/255", "attack_steps": 1}
        return AdversarialTrainer(
            model_init=model_init,
            args=make_args(eval_epsilons=None, **settings),
            train_dataset=with_pixel_values(train, processor),
            eval_dataset=with_pixel_values(validation, processor),
            processing_class=processor,
            data_collator=stack_examples,
        )

    return make


def test_four_trials_on_the_embedded_default(make_searched, tmp_path):
    budgets, started_from = [], []

    class Spying(EpsilonSchedulerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            super().on_step_begin(args, state, control, **kwargs)
            budgets.append(self.current_eps)

    trainer = make_searched(started_from)
    trainer.args.eps_schedule, trainer.args.schedule_args = "smoothed_hinge", {"bend": 0.5}
    trainer.args.schedule_overshoot, trainer.args.attack_steps_schedule = 1.1, "cosine"
    scheduler = Spying.from_args(trainer.args)
    trainer.remove_callback(EpsilonSchedulerCallback)
    trainer.add_callback(scheduler)
    before = dict(vars(trainer.args))
    result = search_learning_rates(trainer, n_trials=4, pruner="none", recipe=tmp_path / "found.yaml")

    assert len(result.trials) == 4 and len(started_from) == 1 + 4
    for start in started_from:
        assert_same_weights(start, started_from[0])
    assert budgets and set(budgets) == {4 / 255}  # fix, whatever the trainer's schedule is
    assert vars(trainer.args) == before
    best = max(result.trials, key=lambda trial: trial.accuracy)
    assert result.accuracy == best.accuracy and result.values == best.values
    assert len({trial.accuracy for trial in result.trials}) > 1
    assert all(1e-5 <= value <= 1e-1 for trial in result.trials for value in trial.values.values())

    found = yaml.safe_load((tmp_path / "found.yaml").read_text())
    assert {name: float(value) for name, value in found.items()} == pytest.approx(result.values, rel=1e-3)

    # The best trial's accuracy is what training with its values gives.
    trainer.args.learning_rate, trainer.args.weight_decay = best.values["learning_rate"], best.values["weight_decay"]
    trainer.args.eps_schedule, trainer.args.robust_eval = "constant", "no"
    trainer.args.schedule_args, trainer.args.schedule_overshoot = None, 1.0
    trainer.args.attack_steps_schedule = "constant"
    trainer.train()
    assert trainer.evaluate()["eval_clean_accuracy"] == pytest.approx(result.accuracy, abs=1e-9)
    (args,) = parse_recipe((AdversarialTrainingArguments,), tmp_path / "found.yaml", {"output_dir": str(tmp_path)})
    assert args.learning_rate == pytest.approx(result.values["learning_rate"], rel=1e-3)


def test_bad_trials_are_pruned_and_failures_reported(make_trainer, make_model, make_args, caplog):
    given = make_trainer()

    def build(**changes):
        return AdversarialTrainer(
            model_init=lambda: make_model("vit"),
            args=make_args(num_train_epochs=4, optim="sgd", **changes),
            train_dataset=given.train_dataset,
            eval_dataset=given.eval_dataset,
            processing_class=given.processing_class,
            data_collator=stack_examples,
        )

    result = search_learning_rates(
        build(), n_trials=8, learning_rate=(1e-3, 1e12), weight_decay=None, head_learning_rate=(1e-3, 1.0)
    )
    by_state = {state: [trial for trial in result.trials if trial.state == state] for state in ("pruned", "failed")}
    assert by_state["pruned"] and all(trial.accuracy <= result.accuracy for trial in by_state["pruned"])
    assert by_state["failed"] and all("NaN" in trial.error or "loss is" in trial.error for trial in by_state["failed"])
    assert "trials failed" in caplog.text
    assert result.values.keys() == {"learning_rate", "head_learning_rate"}
    with pytest.raises(RuntimeError, match=r"None of 2 trials was completed: trial 0 \(learning_rate=.*loss is"):
        search_learning_rates(build(), n_trials=2, learning_rate=(1e30, 1e31), weight_decay=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": (1e-1, 1e-5)}, "range of learning_rate must be two increasing"),
        ({"weight_decay": (0.0, 0.1)}, "range of weight_decay"),
        ({"pruner": "hyperband"}, "Valid: asha, median, none"),
        ({"n_trials": 0}, "at least 1"),
        ({}, "model_init=lambda"),
    ],
)
def test_bad_searches_are_refused(make_trainer, options, message):
    with pytest.raises(ValueError, match=message):
        search_learning_rates(make_trainer(), **options)


def test_a_search_has_no_first_phase(make_trainer, make_model):
    options = {"probe_epochs": 2, "probe_learning_rate": 1.0}
    trainer = make_trainer(**options)
    trainer.model_init = make_model
    with pytest.raises(ValueError, match="probe_epochs=2 asks for a head that was trained first: search without"):
        search_learning_rates(trainer, n_trials=1)


def test_without_optuna_the_extra_is_named(make_trainer, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"pip install 'hf_robust_ft\[search\]'"):
        search_learning_rates(make_trainer())
