"""A checkpoint is not continued as another run unasked; what does not touch the weights may change."""

import json
import re

import pytest
import yaml
from conftest import assert_same_weights
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from hf_robust_ft import AdversarialTrainer
from hf_robust_ft.cli.main import main
from hf_robust_ft.training.base.resuming import TrainingRecord

SAVING = {"save_strategy": "epoch", "num_train_epochs": 2}


@pytest.fixture
def half_done(make_trainer):
    """A run of 2 epochs, of which the first one's checkpoint is resumed."""
    trainer = make_trainer(**SAVING)
    trainer.train()
    return f"{trainer.args.output_dir}/checkpoint-6", trainer


def resume(make_trainer, checkpoint, **changes):
    trainer = make_trainer(**{**SAVING, **changes})
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


OTHER_SETTINGS = [
    ({"eps": "4/255", "eval_epsilons": None}, "eps '8/255' there, '4/255' now"),
    ({"num_train_epochs": 3}, "num_train_epochs 2 there, 3 now"),
    ({"learning_rate": 1e-4, "attack_steps": 3}, "attack_steps 2 there, 3 now; learning_rate 0.001 there, 0.0001"),
    ({"head_learning_rate": 1e-2}, "head_learning_rate None there, 0.01 now"),
    ({"batch_norm": "trainer"}, "batch_norm 'frozen' there, 'trainer' now"),
    ({"seed": 1}, "seed 42 there, 1 now"),
    ({"bf16": True}, "bf16 False there, True now; mixed_precision 'no' there, 'bf16' now"),
    ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha None there, 5.0 now"),
    ({"accelerator_config": {"split_batches": True}}, "split_batches False there, True now"),
    ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps 1 there, 2 now"),
    (
        {"eps_schedule": "smoothed_hinge", "schedule_args": {"bend": 0.5}},
        "eps_schedule 'hinge' there, 'smoothed_hinge' now; schedule_args None there, {'bend': 0.5} now",
    ),
]


def test_other_settings_are_refused_by_name(make_trainer, half_done, tmp_path):
    checkpoint, _ = half_done
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    for changes, told in OTHER_SETTINGS:
        with pytest.raises(ValueError, match=f"was trained with other settings: {re.escape(told)}.*force_resume=True"):
            resume(make_trainer, checkpoint, **changes)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_what_does_not_touch_the_weights_may_change(make_trainer, half_done, dataset, tmp_path):
    checkpoint, whole = half_done
    resumed = resume(
        make_trainer, checkpoint, output_dir=str(tmp_path / "elsewhere"), eval_strategy="steps", eval_steps=4,
        logging_strategy="steps", logging_steps=1, robust_eval="epoch", eval_epsilons=None, eval_attack_steps=1,
        save_strategy="steps", save_steps=5, save_total_limit=1, per_device_eval_batch_size=5,
        run_name="another", dataloader_num_workers=0, eps=8 / 255,
    )  # fmt: skip
    assert_same_weights(resumed.model, whole.model)


def test_the_precision_of_accelerate_launch_counts(make_trainer, half_done, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ValueError, match="other settings: mixed_precision 'no' there, 'bf16' now"):
        resume(make_trainer, half_done[0])


def test_true_means_the_newest_checkpoint(make_trainer, half_done):
    with pytest.raises(ValueError, match=r"checkpoint-12 was trained .* seed 42 there, 1 now"):
        resume(make_trainer, True, seed=1)


def test_other_data_are_refused_by_their_number(make_trainer, half_done, dataset):
    with pytest.raises(ValueError, match="train_samples 48 there, 40 now"):
        resume(make_trainer, half_done[0], train_dataset=dataset.select(range(40)))


def test_what_was_forced_is_remembered_by_checkpoints_and_report(make_trainer, half_done, tmp_path, caplog):
    forced = resume(make_trainer, half_done[0], seed=1, force_resume=True, output_dir=str(tmp_path / "forced"))
    assert "goes on all the same: seed 42 there, 1 now" in caplog.text
    again = make_trainer(**SAVING, seed=1, output_dir=str(tmp_path / "forced"))
    again.train(resume_from_checkpoint=True)  # the forced settings are now its own
    assert again.training_record.changes == ["seed 42 there, 1 now"]
    assert_same_weights(again.model, forced.model)
    again.evaluate()
    assert again.robustness_report.metadata["resumed_with_changes"] == ["seed 42 there, 1 now"]


def test_a_checkpoint_from_before_batch_norm_was_a_setting_was_trained_as_trainer_does(make_trainer, half_done):
    checkpoint, _ = half_done
    path = f"{checkpoint}/trainer_state.json"
    with open(path) as file:
        state = json.load(file)
    del state["stateful_callbacks"][TrainingRecord.__name__]["attributes"]["training"]["batch_norm"]
    with open(path, "w") as file:
        json.dump(state, file)
    with pytest.raises(ValueError, match="batch_norm 'trainer' there, 'frozen' now"):
        resume(make_trainer, checkpoint)
    resume(make_trainer, checkpoint, batch_norm="trainer")


def test_a_checkpoint_from_before_this_record_goes_on_and_the_log_says_so(make_trainer, half_done, caplog):
    checkpoint, whole = half_done
    path = f"{checkpoint}/trainer_state.json"
    with open(path) as file:
        state = json.load(file)
    del state["stateful_callbacks"][TrainingRecord.__name__]
    with open(path, "w") as file:
        json.dump(state, file)
    assert_same_weights(resume(make_trainer, checkpoint).model, whole.model)
    assert "does not say what it was trained with" in caplog.text


class Counter(TrainerCallback, ExportableState):
    steps = 0

    def state(self):
        return {"args": {}, "attributes": {"steps": self.steps}}

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1


def test_a_callback_that_the_checkpoint_knows_nothing_of_is_saved_with_the_next(make_trainer, half_done):
    trainer = make_trainer(**SAVING)
    trainer.add_callback(Counter())
    trainer.train(resume_from_checkpoint=half_done[0])
    assert trainer.state.stateful_callbacks["Counter"]["attributes"] == {"steps": 6}


def test_restored_callbacks_keep_the_record(make_trainer, half_done):
    resumed = resume(make_trainer, half_done[0], restore_callback_states_from_checkpoint=True)
    assert resumed.training_record.training["seed"] == 42 and isinstance(resumed, AdversarialTrainer)


def test_the_command_line_refuses_and_forces(imagefolder, checkpoint, tmp_path, capsys):
    run = tmp_path / "run"
    flags = [
        "train", "--model", checkpoint, "--dataset", imagefolder, "--output_dir", str(run), "--eps", "8/255",
        "--num_train_epochs", "2", "--per_device_train_batch_size", "8", "--attack_steps", "1",
        "--use_cpu", "--robust_eval", "no", "--disable_tqdm", "true",
        "--validation_size", "0.25", "--logging_steps", "3",
    ]  # fmt: skip
    main(flags)
    recipe = (run / "recipe.yaml").read_text()
    resumed = ["--resume_from_checkpoint", "last"]
    for changes, told in (
        (["--augmentation", "none"], "augmentation 'paper' there, 'none' now"),
        (["--split_seed", "1", "--eps", "4/255"], "split_seed 0 there, 1 now; eps '8/255' there, '4/255' now"),
        (["--image_size", "32"], "image_size None there, 32 now"),
    ):
        with pytest.raises(SystemExit):
            main([*flags, *resumed, *changes])
        assert told in capsys.readouterr().err
        assert (run / "recipe.yaml").read_text() == recipe
    main([*flags, *resumed, "--logging_steps", "1", "--per_device_eval_batch_size", "4"])
    main([*flags, *resumed, "--augmentation", "none", "--force_resume"])
    assert "force_resume" not in yaml.safe_load((run / "recipe.yaml").read_text())
    changes = json.loads((run / "provenance.json").read_text())["resumed_with_changes"]
    assert changes == ["augmentation 'paper' there, 'none' now"]
