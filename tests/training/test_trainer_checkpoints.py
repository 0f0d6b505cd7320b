"""Resuming and loading the best model restore every weight, callback and eps; each trap fails on the plain Trainer."""

import signal

import pytest
import safetensors.torch
import torch
from conftest import assert_same_weights, run_script, weights
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_robust_ft import AdversarialTrainer, EpsilonSchedulerCallback

SAVING = {"save_strategy": "epoch", "save_total_limit": None}


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_training_stop = True


def eps_history(trainer):
    return [(entry["step"], entry["eps"]) for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("kind", ["vit", "resnet", "timm"])
@pytest.mark.parametrize("changes", [{}, {"attack_random_start": True, "schedule_granularity": "step"}])
def test_resuming_equals_an_uninterrupted_run(make_trainer, make_model, tmp_path, kind, changes):
    settings = {"save_strategy": "steps", "save_steps": 10, "logging_strategy": "steps", "logging_steps": 1, **changes}
    whole = make_trainer(make_model(kind, dropout=0.1), **settings, output_dir=str(tmp_path / "whole"))
    whole.train()
    cut = make_trainer(make_model(kind, dropout=0.1), **settings, callbacks=[StopAt(13)])
    cut.train()
    # Other weights than the first run's, to be replaced by the checkpoint's.
    resumed = make_trainer(make_model(kind, seed=5, dropout=0.1), **settings)
    resumed.train(resume_from_checkpoint=f"{resumed.args.output_dir}/checkpoint-10")
    assert_same_weights(resumed.model, whole.model)
    assert eps_history(resumed) == eps_history(whole)


def test_plain_trainer_drops_weights_on_resume_and_ours_does_not(make_trainer, make_model, make_args):
    def resumed(trainer_cls, args):
        first = make_trainer(make_model("vit"), trainer_cls=trainer_cls, args=args)
        first.train()
        saved = weights(first.model)
        second = make_trainer(make_model("vit", seed=5), trainer_cls=trainer_cls, args=args)
        second._load_from_checkpoint(f"{args.output_dir}/checkpoint-6")
        return saved, second.model

    settings = {"num_train_epochs": 1, "save_strategy": "epoch"}
    saved, ours = resumed(AdversarialTrainer, make_args(eps="0", eval_epsilons=None, **settings))
    assert_same_weights(saved, ours)
    saved, plain = resumed(Trainer, make_args(TrainingArguments, **settings))
    with pytest.raises(AssertionError, match="tensors differ"):
        assert_same_weights(saved, plain)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_the_best_model_comes_back_whole(make_trainer, make_model, kind):
    kept = {}

    class Keep(TrainerCallback):
        def on_save(self, args, state, control, model=None, **kwargs):
            kept[state.global_step] = weights(model)

    trainer = make_trainer(
        make_model(kind),
        callbacks=[Keep()],
        eval_strategy="epoch",
        save_strategy="epoch",
        robust_eval="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="expected_robustness",
        learning_rate=1e-2,
    )
    trainer.train()
    assert trainer.state.best_global_step in kept
    assert_same_weights(trainer.model, kept[trainer.state.best_global_step])


def test_a_sharded_checkpoint_resumes_whole(make_trainer, make_model, tmp_path):
    model = make_model("vit")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="5KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    trainer = make_trainer(make_model("vit", seed=5))
    trainer._load_from_checkpoint(str(tmp_path / "sharded"))
    assert_same_weights(trainer.model, model)


def test_a_checkpoint_of_another_model_is_refused(make_trainer, make_model, tmp_path):
    make_model("vit", num_labels=7).save_pretrained(tmp_path / "other")
    trainer = make_trainer(make_model("vit"))
    with pytest.raises(RuntimeError, match="classifier"):
        trainer._load_from_checkpoint(str(tmp_path / "other"))


def test_a_checkpoint_that_lacks_weights_is_refused(make_trainer, make_model, tmp_path):
    make_model("vit").save_pretrained(tmp_path / "cut")
    path = tmp_path / "cut" / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file({k: v for k, v in tensors.items() if "classifier" not in k}, path, {"format": "pt"})
    with pytest.raises(RuntimeError, match=r"does not hold this model's weights.*classifier"):
        make_trainer(make_model("vit"))._load_from_checkpoint(str(tmp_path / "cut"))


def test_rebuilt_callbacks_are_looked_up_and_never_stale(make_trainer, make_model):
    mine = EpsilonSchedulerCallback("8/255", "linear_warmup", 0.0, 0.9)
    settings = {**SAVING, "restore_callback_states_from_checkpoint": True}
    make_trainer(make_model(), callbacks=[mine], **settings).train()
    other = EpsilonSchedulerCallback("8/255", "linear_warmup", 0.0, 0.9)
    resumed = make_trainer(make_model(), callbacks=[other], **settings)
    resumed.train(resume_from_checkpoint=f"{resumed.args.output_dir}/checkpoint-12")
    assert resumed.scheduler_callback is not other  # upstream replaced it: a kept reference would be stale
    assert other.current_eps < resumed.current_eps == pytest.approx(8 / 255 * 0.75 / 0.9)


def test_plain_trainer_takes_two_schedulers_without_a_word(make_trainer, make_model, make_args):
    two = [EpsilonSchedulerCallback("8/255"), EpsilonSchedulerCallback("4/255")]
    plain = make_trainer(make_model(), trainer_cls=Trainer, args=make_args(TrainingArguments), callbacks=list(two))
    assert sum(isinstance(entry, EpsilonSchedulerCallback) for entry in plain.callback_handler.callbacks) == 2
    with pytest.raises(ValueError, match="at most one"):
        make_trainer(make_model(), callbacks=list(two))


KILLED_SCRIPT = """
import os, signal
from transformers import TrainerCallback

class KillAt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == {kill_at}:
            os.kill(os.getpid(), signal.SIGKILL)

trainer = make_trainer(make_model("vit", dropout=0.1), callbacks=[KillAt()], save_strategy="steps", save_steps=5,
                       attack_random_start=True)
last = sorted(folder.glob("out/checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
trainer.train(resume_from_checkpoint=str(last[-1]) if last else None)
budgets = [entry["eps"] for entry in trainer.state.log_history]
torch.save(dict(weights=trainer.model.state_dict(), eps=budgets), folder / "final.pt")
"""


def test_killed_in_the_ramp_and_resumed_equals_uninterrupted(tmp_path):
    def run(folder, kill_at):
        return run_script(KILLED_SCRIPT.format(kill_at=kill_at), folder)

    whole = run(tmp_path / "whole", kill_at=-1)
    assert whole.returncode == 0, whole.stderr
    killed = run(tmp_path / "killed", kill_at=13)
    assert killed.returncode == -signal.SIGKILL and not (tmp_path / "killed" / "final.pt").exists()
    resumed = run(tmp_path / "killed", kill_at=-1)
    assert resumed.returncode == 0, resumed.stderr
    first, second = (torch.load(tmp_path / name / "final.pt", weights_only=True) for name in ("whole", "killed"))
    assert_same_weights(first["weights"], second["weights"])
    assert first["eps"] == second["eps"]
