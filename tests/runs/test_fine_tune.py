"""What a run tells before it is trained."""

import pytest
from datasets import Dataset

from hf_robust_ft import AdversarialTrainingArguments
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
