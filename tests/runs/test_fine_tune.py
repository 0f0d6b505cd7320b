"""What a run tells before it is trained."""

import pytest
from datasets import Dataset

from hf_robust_ft import AdversarialTrainingArguments
from hf_robust_ft.cli.main import main
from hf_robust_ft.runs.fine_tune import _warn_of_few_steps


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "6 training steps"),
        ({"gradient_accumulation_steps": 3}, "2 training steps"),
        ({"max_steps": 99}, "99 training steps"),
        ({"max_steps": 100}, ""),
        ({"num_train_epochs": 40}, ""),
        ({"eps": "0"}, ""),
    ],
)
def test_few_training_steps_are_told_with_what_makes_more(tmp_path, caplog, changes, told):
    settings = {"num_train_epochs": 2, "per_device_train_batch_size": 8, "use_cpu": True, "report_to": []}
    _warn_of_few_steps(
        AdversarialTrainingArguments(str(tmp_path), **settings | changes), Dataset.from_dict({"label": [0] * 20})
    )
    assert caplog.text.count("raise --num_train_epochs") == bool(told) and told in caplog.text


def test_few_steps_of_a_head_are_told_before_it_trains(checkpoint, imagefolder, tmp_path, caplog):
    argv = ["--model", checkpoint, "--dataset", imagefolder, "--output_dir", str(tmp_path / "run"), "--use_cpu"]
    argv += ["--probe_epochs", "1", "--probe_learning_rate", "0.1", "--attack_steps", "1", "--report_to", "none"]
    argv += ["--num_train_epochs", "1", "--robust_eval", "no", "--eps_schedule", "constant"]
    main(["train", *argv])
    said = [each for each in caplog.messages if "are few" in each]
    assert ["training steps of the head" in each and "--probe_epochs" in each for each in said] == [True, False]
