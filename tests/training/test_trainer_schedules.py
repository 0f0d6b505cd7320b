"""Schedules with memory in real training: they resume bitwise, and every process holds the same."""

import json
import signal

import pytest
import torch
from conftest import assert_same_weights, run_script

from hf_robust_ft.attacks import AttackResult
from hf_robust_ft.data import with_pixel_values
from hf_robust_ft.evaluation.batches import stack_examples
from hf_robust_ft.schedules.sample_ids import SAMPLE_ID, IdentifyingCollator, content_id
from hf_robust_ft.training.adversary import Adversary

LOGS = {"logging_strategy": "steps", "logging_steps": 1, "robust_eval": "no"}
SCHEDULES = {
    "auto": {"eps_schedule": "auto", "schedule_args": {"patience": 1, "tolerance": 1.0}, "eval_strategy": "epoch"},
    "loss_driven": {"eps_schedule": "loss_driven", "schedule_args": {"share": 0.99, "pace": 3.0, "fall": 1.0}},
    "per_sample": {"eps_schedule": "per_sample", "schedule_args": {"levels": 3}},
    "uniform": {"eps_schedule": "uniform", "schedule_granularity": "step", "schedule_overshoot": 1.1},
}


def eps_history(trainer):
    return [(entry["step"], entry["eps"]) for entry in trainer.state.log_history if "loss" in entry]


@pytest.fixture
def identified(images, processor):
    return with_pixel_values(images, processor, sample_ids=True)


@pytest.mark.parametrize("granularity", ["epoch", "step"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_resuming_equals_an_uninterrupted_run(make_trainer, make_model, identified, tmp_path, name, granularity):
    settings = {"save_strategy": "steps", "save_steps": 3, "schedule_granularity": granularity, "learning_rate": 1e-2}
    settings |= LOGS | SCHEDULES[name]

    def build(folder, **changes):
        return make_trainer(
            make_model("vit", dropout=0.1),
            train_dataset=identified,
            output_dir=str(tmp_path / folder),
            **settings,
            **changes,
        )

    whole = build("whole")
    whole.train()
    assert len({eps for _, eps in eps_history(whole)}) > 1
    for step, restores in (
        (9, False),
        (12, True),
    ):  # within an epoch, and at its end, where auto waits for its accuracy
        resumed = build("resumed", restore_callback_states_from_checkpoint=restores)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert_same_weights(resumed.model, whole.model)
        assert eps_history(resumed) == eps_history(whole)
        assert resumed.scheduler_callback.memory == whole.scheduler_callback.memory


def test_each_image_is_attacked_at_its_own_eps_once(make_trainer, make_model, identified, monkeypatch):
    attacks, attacked = [], Adversary.attack

    def spy(self, model, inputs, *args, eps, **options):
        result = attacked(self, model, inputs, *args, eps=eps, **options)
        if self.is_ready:  # not the rehearsal
            size = self.pixel_space.to_pixels(inputs["pixel_values"]).sub(result.adversarial).abs().amax((1, 2, 3))
            attacks.append((eps, size, result.fooled))
        return result

    monkeypatch.setattr(Adversary, "attack", spy)
    settings = SCHEDULES["per_sample"] | {"num_train_epochs": 5, "learning_rate": 1e-2}
    trainer = make_trainer(train_dataset=identified, **LOGS, **settings)
    trainer.train()
    assert len(attacks) == 5 * 6  # no attack but training's own
    assert attacks[0][0] == 0.0  # nothing to attack at first: one forward
    for eps, size, _ in attacks:
        assert (size <= torch.as_tensor(eps, dtype=torch.float32) + 1e-6).all()
    assert any(isinstance(eps, torch.Tensor) and 0 < eps.min() < eps.max() for eps, _, _ in attacks)
    memory = trainer.scheduler_callback.memory
    ids = {content_id(cell["bytes"]) for cell in identified.with_format(None)["image"]}
    assert {int(key) for key in memory["levels"]} == ids and len(ids) == 48
    correct = sum(int((~fooled).sum()) for _, _, fooled in attacks)
    assert 0 < memory["total"] <= correct
    assert trainer.scheduler_callback.eps_at(0, 1) == 8 / 255 * (memory["total"] / 48 / 3)  # the mean of their own


def test_levels_follow_the_attacks_outcome(make_trainer, make_model, identified, monkeypatch):
    def stub(self, model, inputs, *args, first=None, **options):
        pixels, labels = self.pixel_space.to_pixels(inputs["pixel_values"])[:first], inputs["labels"][:first]
        return AttackResult(pixels, labels == 0, labels.float(), labels)

    monkeypatch.setattr(Adversary, "attack", stub)
    trainer = make_trainer(train_dataset=identified, num_train_epochs=2, **LOGS, **SCHEDULES["per_sample"])
    trainer.train()
    levels = trainer.scheduler_callback.memory["levels"]
    rows = identified.with_format(None)
    expected = {str(content_id(row["image"]["bytes"])): 0 if row["label"] == 0 else 2 for row in rows}
    assert levels == expected


def test_ids_of_a_column_or_of_strings_serve_too(images, processor, make_trainer):
    named = images.add_column(SAMPLE_ID, [f"photo {index}" for index in range(48)])
    lazy = with_pixel_values(named, processor, sample_ids=True)
    trainer = make_trainer(train_dataset=lazy, num_train_epochs=1, **LOGS, **SCHEDULES["per_sample"])
    trainer.train()
    assert set(trainer.scheduler_callback.memory["levels"]) == {
        str(content_id(f"photo {index}".encode())) for index in range(48)
    }
    batch = IdentifyingCollator(stack_examples)([lazy[0] | {SAMPLE_ID: 7}, lazy[1] | {SAMPLE_ID: 5}])
    assert batch[SAMPLE_ID].tolist() == [7, 5]


def test_images_without_an_id_or_with_the_same_are_refused(images, dataset, processor, make_trainer):
    with pytest.raises(ValueError, match=r"no 'sample_id', but \['labels', 'pixel_values'\].*dataset\.add_column"):
        make_trainer(train_dataset=dataset, **SCHEDULES["per_sample"]).train()
    same = with_pixel_values(images.add_column(SAMPLE_ID, [0] * 48), processor, sample_ids=True)
    with pytest.raises(ValueError, match="gives 48 images 1 different ids"):
        make_trainer(train_dataset=same, **SCHEDULES["per_sample"])


def test_several_evaluation_sets_leave_auto_undecided(make_trainer, dataset):
    with pytest.raises(ValueError, match=r"several datasets: \['left', 'right'\]"):
        make_trainer(eval_dataset={"left": dataset, "right": dataset}, **SCHEDULES["auto"])


def test_ids_stay_out_of_the_model_under_any_schedule(identified, make_trainer):
    def collate(examples):
        return IdentifyingCollator(stack_examples)(examples)

    trainer = make_trainer(
        train_dataset=identified,
        eval_dataset=identified,
        data_collator=collate,
        eps_schedule="constant",
        num_train_epochs=1,
    )
    trainer.train()
    assert "eval_expected_robustness" in trainer.evaluate()


def test_eps_zero_costs_no_forward_with_a_per_sample_schedule(identified, make_trainer, monkeypatch):
    attacks = []
    monkeypatch.setattr(Adversary, "attack", lambda *args, **options: attacks.append(args))
    trainer = make_trainer(
        train_dataset=identified,
        num_train_epochs=1,
        eps="0",
        eval_epsilons=None,
        robust_eval="no",
        **SCHEDULES["per_sample"],
    )
    trainer.train()
    assert trainer.state.global_step > 0 and attacks == []


def test_attack_steps_and_overshoot_reach_the_attack(make_trainer, monkeypatch):
    seen, attacked = [], Adversary.attack

    def spy(self, *args, eps, attack, **options):
        if self.is_ready:
            seen.append((eps, attack.steps))
        return attacked(self, *args, eps=eps, attack=attack, **options)

    monkeypatch.setattr(Adversary, "attack", spy)
    trainer = make_trainer(
        eps_schedule="constant", schedule_overshoot=1.25, attack_steps=3, attack_steps_schedule="linear_warmup",
        attack_steps_args=["end=0.5"], num_train_epochs=4,
    )  # fmt: skip
    trainer.train()
    assert {eps for eps, _ in seen} == {1.25 * 8 / 255}
    assert [steps for _, steps in seen] == [1] * 6 + [2] * 6 + [3] * 12
    trainer.evaluate()
    report = trainer.robustness_report
    assert report.epsilons[-1] == 8 / 255  # evaluation stays at eps_g
    training = report.metadata["training"]
    assert training["schedule_overshoot"] == 1.25 and training["attack_steps_args"] == {"end": 0.5}


def test_attack_steps_that_follow_eps_do_so_at_every_attack(make_trainer, monkeypatch):
    seen, attacked = [], Adversary.attack

    def spy(self, *args, eps, attack, **options):
        if self.is_ready:
            seen.append((eps, attack.steps))
        return attacked(self, *args, eps=eps, attack=attack, **options)

    monkeypatch.setattr(Adversary, "attack", spy)
    make_trainer(eps_schedule="linear_warmup", attack_steps=5, attack_steps_min=2, attack_steps_schedule="eps").train()
    # Four epochs, the first at eps 0, without an attack; the ramp ends at 0.74 of training.
    assert [steps for _, steps in seen] == [3] * 6 + [4] * 6 + [5] * 6
    assert [eps * 255 / 8 for eps, _ in seen[::6]] == pytest.approx([0.25 / 0.74, 0.5 / 0.74, 1])


KILLED = """
import json, os, signal
from transformers import TrainerCallback
from hf_robust_ft.data import with_pixel_values

class KillAt(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == {kill_at}:
            os.kill(os.getpid(), signal.SIGKILL)

identified = with_pixel_values(call(conftest.images), processor, sample_ids=True)
trainer = make_trainer(make_model("vit", dropout=0.1), callbacks=[KillAt()], train_dataset=identified,
                       per_device_train_batch_size={batch_size}, save_strategy="steps", save_steps=6, **{settings!r})
last = sorted(folder.glob("out/checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
trainer.train(resume_from_checkpoint=str(last[-1]) if last else None)
eps = [entry["eps"] for entry in trainer.state.log_history if "loss" in entry]
result = dict(eps=eps, memory=trainer.scheduler_callback.memory)
(folder / f"rank{{trainer.args.process_index}}.json").write_text(json.dumps(result))
"""


@pytest.mark.parametrize("name", ["auto", "per_sample"])
def test_killed_and_resumed_has_the_same_eps_bitwise(make_trainer, make_model, identified, tmp_path, name):
    def run(kill_at):
        script = KILLED.format(kill_at=kill_at, batch_size=8, settings=LOGS | SCHEDULES[name])
        return run_script(script, tmp_path / "killed")

    assert run(15).returncode == -signal.SIGKILL and not (tmp_path / "killed/rank0.json").exists()
    assert run(-1).returncode == 0
    resumed = json.loads((tmp_path / "killed/rank0.json").read_text())
    whole = make_trainer(make_model("vit", dropout=0.1), train_dataset=identified, **LOGS, **SCHEDULES[name])
    whole.train()
    assert resumed["eps"] == [eps for _, eps in eps_history(whole)]
    assert resumed["memory"] == whole.scheduler_callback.memory


@pytest.mark.parametrize("name", ["loss_driven", "per_sample"])
def test_two_processes_hold_the_same(tmp_path, name):
    done = run_script(
        KILLED.format(kill_at=-1, batch_size=4, settings=LOGS | SCHEDULES[name]), tmp_path / "two", processes=2
    )
    assert done.returncode == 0, done.stderr
    rank0, rank1 = (json.loads((tmp_path / f"two/rank{rank}.json").read_text()) for rank in (0, 1))
    assert rank0 == rank1 and len(set(rank0["eps"])) > 2
    if name == "per_sample":
        assert len(rank0["memory"]["levels"]) == 48  # what either process attacked
