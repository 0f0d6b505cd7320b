"""Runs that are trained once, and what they are measured on again."""

import json

import pytest
import yaml

from hf_robust_ft import evaluate_robustness
from hf_robust_ft.experiments import kept_runs
from hf_robust_ft.experiments.grid.pass_counter import PassCounter
from hf_robust_ft.experiments.kept_runs import kept_run, training_passes
from hf_robust_ft.runs.arguments import ModelArguments
from hf_robust_ft.runs.fine_tune import build_trainer, prepare_run
from hf_robust_ft.runs.recipes import RUN_ARGUMENTS, parse_recipe, read_recipe


@pytest.fixture
def recipe(checkpoint, imagefolder, tmp_path):
    path = tmp_path / "tiny.yaml"
    content = {
        "model": checkpoint,
        "dataset": imagefolder,
        "eps": "8/255",
        "attack_steps": 2,
        "eval_epsilons": ["0", "8/255"],
        "num_train_epochs": 4,
        "max_train_samples": 20,
        "max_eval_samples": 12,
        "per_device_train_batch_size": 8,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_run_is_trained_once_and_measured_again_on_the_same_images(recipe, tmp_path, monkeypatch):
    first = kept_run(recipe, tmp_path / "run", eps_schedule="constant")
    assert first.history == json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    monkeypatch.setattr(kept_runs, "fine_tune", None)  # a second training would fail
    again = kept_run(recipe, tmp_path / "run", eps_schedule="constant")
    assert again.report.to_dict() == first.report.to_dict()
    model, images, how = again.load()
    report = evaluate_robustness(model, images, **how, checks=False)
    assert len(images) == 12 and report.image_digest == first.report.image_digest
    assert (report.epsilons, report.accuracies) == (first.report.epsilons, first.report.accuracies)
    with pytest.raises(ValueError, match=r"holds another run: eps_schedule .*constant.*hinge"):
        kept_run(recipe, tmp_path / "run", eps_schedule="hinge")


@pytest.mark.parametrize("method", ["at", "trades", "mart"])
def test_the_passes_told_are_those_that_training_takes(recipe, tmp_path, monkeypatch, method):
    changes = {} if method == "at" else read_recipe(method)
    options = {**changes, "output_dir": str(tmp_path / "run")}
    model_args, data_args, args = parse_recipe(RUN_ARGUMENTS, recipe, options)
    trainer = build_trainer(model_args, args, prepare_run(model_args, data_args, args))
    counter = PassCounter(len(trainer.train_dataset))
    counter.follow(trainer.scheduler_callback)
    trainer.add_callback(counter)
    trainer.train()
    monkeypatch.setattr(ModelArguments, "load", None)  # no model is needed to count
    told = training_passes(recipe, **changes)
    assert told == {
        "training": counter.passes["training"],
        "input_gradient": counter.passes["attack"],
        "forward": counter.passes["forward"],
    }
