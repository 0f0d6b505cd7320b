"""The guard of few-step attacks: fires on a model that withstands only those, never on a healthy one, and resumes."""

import json
from functools import partial

import pytest
import torch
from conftest import assert_same_weights, run_script

from hf_robust_ft import AdversarialTrainer
from hf_robust_ft.attacks import AttackResult
from hf_robust_ft.training.guard import OverfittingGuard

FEW = {
    "eps_schedule": "constant",
    "attack_steps": 3,
    "attack_steps_schedule": "piecewise_linear",
    "attack_steps_args": ["points=0:0,1:0"],
    "attack_guard": 0.5,
    "attack_guard_every": 4,
    "robust_eval": "no",
}


class Overfitted(AdversarialTrainer):
    """Stands for a model that withstands every attack of fewer steps than 3, and none of 3."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.steps, self.adversary.attack = [], partial(self.overfitted, self.adversary.attack)

    def overfitted(self, find, *args, attack, **options):
        result = find(*args, attack=attack, **options)
        if self.adversary.is_ready:
            self.steps.append((self.state.global_step, attack.steps, len(result.fooled)))
        fooled = torch.full_like(result.fooled, attack.steps >= 3)
        return AttackResult(result.adversarial, fooled, result.loss, result.predictions)


def overfitted(make_trainer, model, **changes):
    return make_trainer(model, trainer_cls=Overfitted, **(FEW | changes))


def test_falls_back_to_all_steps_after_two_checks_in_a_row(make_trainer, make_model, caplog):
    trainer = overfitted(make_trainer, make_model(), num_train_epochs=2)
    trainer.train()
    guard = trainer.overfitting_guard
    assert guard.fell_back_at == 5  # the check of step 4, and the one that confirms it
    few, full = [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (4, 3), (5, 1), (5, 3)], [(step, 3) for step in range(6, 12)]
    assert [(step, steps) for step, steps, _ in trainer.steps] == few + full
    assert "Catastrophic overfitting at step 5: of 8 images that are correct" in caplog.text
    fell = [entry for entry in trainer.state.log_history if "attack_guard_fell_back_at" in entry]
    assert [entry["attack_guard_fell_back_at"] for entry in fell] == [5] and fell[0]["eps"] == 8 / 255
    described = trainer.facts()["training"]
    assert described["attack_guard"] == {"share": 0.5, "every": 4, "fell_back_at": 5}


def test_a_healthy_model_keeps_its_few_steps(make_trainer, make_model):
    trainer = make_trainer(make_model(), **FEW, num_train_epochs=8, learning_rate=1e-2)
    trainer.train()
    guard = trainer.overfitting_guard
    assert guard.checked_at == 44 and not guard.fell_back and not guard.suspicious


def test_the_check_changes_no_weight(make_trainer, make_model):
    trainers = []
    for share in (0.99, None):
        settings = FEW | {"attack_guard": share, "attack_random_start": True}
        trainers.append(make_trainer(make_model(dropout=0.1), **settings))  # which seeds the dropout
        trainers[-1].train()
    guarded, unguarded = trainers
    assert guarded.overfitting_guard.checked_at == 20 and unguarded.overfitting_guard is None
    assert_same_weights(guarded.model, unguarded.model)


def test_one_bad_check_or_too_few_correct_images_prove_nothing():
    guard = OverfittingGuard(share=0.5, every=10)
    assert [step for step in range(25) if guard.is_due(step)] == [10, 20]
    assert not guard.judge(10, few=20, many=9) and guard.is_due(11)
    assert not guard.is_due(10)  # the other batches of the step
    assert not guard.judge(11, few=20, many=10) and not guard.is_due(12)  # exactly the share is no alarm
    assert not guard.judge(20, few=7, many=0) and not guard.is_due(21)
    assert not guard.judge(30, few=8, many=3) and guard.judge(31, few=8, many=3)
    assert guard.fell_back_at == 31 and not any(guard.is_due(step) for step in range(32, 99))


@pytest.mark.parametrize("step", [4, 5, 9])  # before it fires, once it has become suspicious, and long after
@pytest.mark.parametrize("restores", [False, True])
def test_resuming_equals_an_uninterrupted_run(make_trainer, make_model, tmp_path, step, restores):
    settings = {"save_strategy": "steps", "save_steps": 1, "num_train_epochs": 2}
    whole = overfitted(make_trainer, make_model(), output_dir=str(tmp_path / "whole"), **settings)
    whole.train()
    resumed = overfitted(
        make_trainer,
        make_model(),
        output_dir=str(tmp_path / "resumed"),
        restore_callback_states_from_checkpoint=restores,
        **settings,
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
    assert resumed.steps == [entry for entry in whole.steps if entry[0] >= step]
    assert resumed.overfitting_guard.state() == whole.overfitting_guard.state()
    assert_same_weights(resumed.model, whole.model)


def test_a_new_training_starts_unsuspicious(make_trainer, make_model):
    trainer = overfitted(make_trainer, make_model(), num_train_epochs=1)
    trainer.train()
    assert trainer.overfitting_guard.fell_back
    trainer.steps.clear()
    trainer.train()
    assert trainer.steps[0][1] == 1


def test_images_with_their_own_eps_are_guarded_too(make_trainer, make_model, images, processor):
    from hf_robust_ft.data import with_pixel_values

    dataset = with_pixel_values(images, processor, sample_ids=True)
    changes = {"eps_schedule": "per_sample", "schedule_args": {"levels": 3, "initial": 2}}
    trainer = overfitted(make_trainer, make_model(), train_dataset=dataset, **changes)
    trainer.train()
    assert trainer.overfitting_guard.fell_back_at == 5


def test_settings_that_guard_nothing_are_refused(make_args):
    with pytest.raises(ValueError, match="attack_guard does nothing without attack_steps_schedule"):
        make_args(attack_guard=0.5)
    for value in (0.0, 1.0, -0.1):
        with pytest.raises(ValueError, match="attack_guard is a share in \\(0, 1\\)"):
            make_args(**(FEW | {"attack_guard": value}))
    with pytest.raises(ValueError, match="attack_guard_every must be a whole number of at least 1, got 0"):
        make_args(**(FEW | {"attack_guard_every": 0}))


TWO_RANKS = """
import json, os
from test_guard import Overfitted, FEW
from hf_robust_ft.attacks import AttackResult
class OneRank(Overfitted):
    def overfitted(self, *args, **options):
        result = super().overfitted(*args, **options)
        if self.args.process_index == 0:
            result.fooled[:] = False  # alone, this rank would never fall back
        return result
trainer = make_trainer(make_model(), trainer_cls=OneRank, **{**FEW, "num_train_epochs": 4, "attack_guard": 0.4})
trainer.train()
(folder / f"rank{trainer.args.process_index}.json").write_text(json.dumps(trainer.steps))
"""


@pytest.mark.slow
def test_all_ranks_fall_back_together(tmp_path):
    done = run_script(TWO_RANKS, tmp_path / "two", processes=2)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / "two" / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second and [6, 3, 8] in first
