"""SIGTERM and Ctrl-C save what a resumed run goes on from, and end the process."""

import os
import signal

import pytest
from conftest import assert_same_weights
from transformers import TrainerCallback

from hf_robust_ft.cli.main import main
from hf_robust_ft.training.base.checkpoints import fault_of
from hf_robust_ft.training.base.termination import Interrupted, Terminated

SCHEDULES = {
    "hinge": {"gradient_accumulation_steps": 2, "ema_decay": 0.9, "attack_random_start": True},
    "auto": {"eps_schedule": "auto", "schedule_args": {"patience": 1, "tolerance": 1.0}, "eval_strategy": "epoch"},
    "model alone": {"save_only_model": True, "save_strategy": "steps", "save_steps": 4},
    "best": {
        "eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True, "save_total_limit": 1,
        "metric_for_best_model": "clean_accuracy",
    },
}  # fmt: skip


class SigtermAt(TrainerCallback):
    """To this process, before the last batch of a step."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("step", [5, 12])  # within an epoch, and at the end of one
def test_what_sigterm_saved_goes_on_to_the_same_end(make_trainer, make_model, tmp_path, caplog, name, step):
    def build(folder, callbacks=None):
        settings = {"output_dir": str(tmp_path / folder), "learning_rate": 1e-2, "robust_eval": "no"} | SCHEDULES[name]
        return make_trainer(make_model("vit", dropout=0.1), callbacks=callbacks, **settings)

    whole = build("whole")
    whole.train()
    stopped = build("stopped", [SigtermAt(step)])
    with pytest.raises(Terminated) as stop:
        stopped.train()
    assert stop.value.code == 143 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert f"stopped after step {step} of" in caplog.text and "resume_from_checkpoint=True" in str(stop.value)
    assert fault_of(tmp_path / "stopped" / f"checkpoint-{step}") is None
    resumed = build("stopped")
    resumed.train(resume_from_checkpoint=True)
    assert resumed._initial_global_step == step
    assert_same_weights(resumed.model, whole.model)
    measured = [
        [(entry["step"], entry["eval_loss"]) for entry in trainer.state.log_history if "eval_loss" in entry]
        for trainer in (resumed, whole)
    ]
    assert measured[0] == measured[1]
    if whole.weight_averaging is not None:
        assert_same_weights(resumed.weight_averaging.averages, whole.weight_averaging.averages)


def test_one_that_comes_too_late_for_a_step_is_not_lost(make_trainer, make_model, tmp_path):
    class SigtermLast(TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            if state.global_step == state.max_steps:
                os.kill(os.getpid(), signal.SIGTERM)

    trainer = make_trainer(make_model(), num_train_epochs=1, callbacks=[SigtermLast()])
    with pytest.raises(Terminated, match="step 6 of 6"):
        trainer.train()
    assert fault_of(tmp_path / "out" / "checkpoint-6") is None


class CtrlCAt(TrainerCallback):
    def __init__(self, *steps):
        self.steps = steps

    def on_step_begin(self, args, state, control, **kwargs):
        for _ in range(self.steps.count(state.global_step + 1)):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def usual_sigint():
    """Python's own handler: a shell starts what runs in the background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("usual_sigint")
def test_ctrl_c_does_the_same(make_trainer, make_model, tmp_path, caplog, capfd):
    trainer = make_trainer(make_model(), callbacks=[CtrlCAt(2)], robust_eval="no")
    with pytest.raises(KeyboardInterrupt) as stop:
        trainer.train()
    assert isinstance(stop.value, Interrupted) and stop.value.code == 130
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert "Ctrl-C: stopped after step 2 of" in caplog.text and "resume_from_checkpoint=True" in caplog.text
    assert "Ctrl-C again stops at once" in capfd.readouterr().err
    assert fault_of(tmp_path / "out" / "checkpoint-2") is None


@pytest.mark.usefixtures("usual_sigint")
def test_a_second_ctrl_c_waits_for_nothing(make_trainer, make_model, tmp_path):
    trainer = make_trainer(make_model(), callbacks=[CtrlCAt(2, 2)], robust_eval="no")
    with pytest.raises(KeyboardInterrupt) as stop:
        trainer.train()
    assert not isinstance(stop.value, Interrupted) and not list((tmp_path / "out").glob("checkpoint-*"))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_another_handler_stays(make_trainer, make_model):
    came = []
    signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        trainer = make_trainer(make_model(), num_train_epochs=1, callbacks=[SigtermAt(2)])
        trainer.train()
        assert came == [signal.SIGTERM] and trainer.state.global_step == 6
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_transformers_own_way_is_refused(make_trainer, make_model):
    try:
        with pytest.raises(ValueError, match="saves on SIGTERM by itself: leave enable_jit_checkpoint out"):
            make_trainer(make_model(), enable_jit_checkpoint=True)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_on_the_command_line_it_ends_with_143_and_the_same_command_goes_on(
    make_model, processor, images, tmp_path, monkeypatch, capsys
):
    make_model().save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    for index, row in enumerate(images):
        folder = tmp_path / "images" / "train" / str(row["label"])
        folder.mkdir(parents=True, exist_ok=True)
        row["image"].save(folder / f"{index}.png")
    flags = [
        "train", "--model", str(tmp_path / "model"), "--dataset", str(tmp_path / "images"), "--eps", "8/255",
        "--output_dir", str(tmp_path / "run"), "--num_train_epochs", "2", "--per_device_train_batch_size", "8",
        "--attack_steps", "1", "--eval_attack_steps", "1", "--robust_eval", "no", "--use_cpu", "--head", "new",
        "--augmentation", "none", "--resume_from_checkpoint", "auto", "--disable_tqdm", "true",
    ]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["hf-robust-ft", *flags])
    from hf_robust_ft.runs import fine_tune as finetuning

    build, sent = finetuning.build_trainer, []

    def signalled(*args, **kwargs):
        trainer = build(*args, **kwargs)
        if not sent:
            trainer.add_callback(SigtermAt(2))
            sent.append(True)
        return trainer

    monkeypatch.setattr(finetuning, "build_trainer", signalled)
    with pytest.raises(SystemExit) as stop:
        main(flags)
    assert stop.value.code == 143
    assert f"hf-robust-ft train --model {tmp_path / 'model'}" in str(stop.value)
    assert str(stop.value).endswith("--resume_from_checkpoint auto --disable_tqdm true")
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (tmp_path / "run" / "model.safetensors").exists()  # training is not done
    main(flags)
    assert (tmp_path / "run" / "model.safetensors").exists()
