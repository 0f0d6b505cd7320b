"""Attacks that go on from the last epoch's: inside the ball, stronger for as many steps, resumed and shared alike."""

import json

import pytest
import torch
from conftest import assert_same_weights, run_script, weights
from datasets import Dataset

from hf_robust_ft import ThreatModel
from hf_robust_ft.benchmarks.gpu.synchronisation import HostReads
from hf_robust_ft.data import with_pixel_values
from hf_robust_ft.evaluation.batches import stack_examples
from hf_robust_ft.training.adversary import Adversary
from hf_robust_ft.training.warm_start import AttackMemory, fingerprints

EPS = 8 / 255
WARM = {"attack_warm_start": True, "attack_steps": 1, "robust_eval": "no", "learning_rate": 1e-2}
RAMP = WARM | {"eps_schedule": "linear_warmup", "schedule_granularity": "step"}


def learnt(pixels, adversarial, eps):
    memory = AttackMemory()
    memory.keep(pixels, adversarial, eps)
    memory._learn()
    return memory


@pytest.fixture
def attacks(monkeypatch):
    """What each attack in training was given and found: pixels, eps, result."""
    seen, attack = [], Adversary.attack

    def spy(self, model, inputs, *args, eps, **options):
        result = attack(self, model, inputs, *args, eps=eps, **options)
        if self.is_ready:  # not the rehearsal
            seen.append((self.pixel_space.clipped_pixels(inputs["pixel_values"]), eps, result))
        return result

    monkeypatch.setattr(Adversary, "attack", spy)
    return seen


# ---- The memory ------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_a_start_is_the_perturbation_at_the_new_eps_to_a_127th_of_its_largest_value(norm):
    pixels = torch.rand(6, 3, 8, 8) * 0.6 + 0.2
    ball = ThreatModel(norm, 0.1).ball(pixels)
    adversarial = ball.random_start(torch.Generator().manual_seed(0))
    memory = learnt(pixels, adversarial, 0.1)
    order = torch.tensor([4, 0, 2])
    start = memory.start(pixels[order], 0.05)
    wanted = (adversarial - pixels)[order] / 2
    assert ((start - pixels[order] - wanted).abs().amax((1, 2, 3)) <= wanted.abs().amax((1, 2, 3)) / 127).all()
    eps = torch.tensor([0.1, 0.0, 0.02], dtype=torch.float64)
    size = (memory.start(pixels[order], eps) - pixels[order]).abs().amax((1, 2, 3))
    whole = (adversarial - pixels)[order].abs().amax((1, 2, 3))
    assert torch.allclose(size, whole * eps.float() / 0.1, atol=1e-6)


def test_new_images_start_at_themselves_and_nothing_known_at_none():
    pixels, others = torch.rand(2, 4, 3, 8, 8).unbind()
    assert AttackMemory().start(pixels, EPS) is None
    memory = learnt(pixels, (pixels + EPS).clamp(0, 1), EPS)
    assert torch.equal(memory.start(others, EPS), others)
    assert memory.start(torch.rand(4, 3, 4, 4), EPS) is None  # of another size


def test_images_of_eps_0_are_remembered_as_unmoved():
    pixels = torch.rand(3, 3, 8, 8)
    for eps in (0.0, torch.zeros(3, dtype=torch.float64)):
        assert torch.equal(learnt(pixels, pixels, eps).start(pixels, EPS), pixels)


def test_an_id_follows_from_the_bits_alone():
    images = torch.rand(64, 3, 16, 16)
    ids = fingerprints(images)
    assert len(ids.unique()) == 64
    assert torch.equal(fingerprints(images[10:13].to(memory_format=torch.channels_last)), ids[10:13])
    changed = images.clone()
    changed[:, 2, 7, 5] = torch.nextafter(changed[:, 2, 7, 5], torch.tensor(2.0))
    assert (fingerprints(changed) != ids).all()


def test_a_remembered_image_takes_a_byte_a_value_and_12_more():
    pixels = torch.rand(5, 3, 16, 16)
    known = learnt(pixels, pixels, EPS).known.values()
    assert sum(tensor.numel() * tensor.element_size() for tensor in known) == 5 * (3 * 16 * 16 + 12)


# ---- Training --------------------------------------------------------------------------


def test_steps_add_up_over_epochs_where_the_model_stands_still(make_trainer, make_model, attacks):
    settings = WARM | {"eps_schedule": "constant", "learning_rate": 0.0, "num_train_epochs": 5}
    losses = {}
    for warm in (True, False):
        make_trainer(make_model("resnet"), **settings | {"attack_warm_start": warm}).train()
        found = torch.stack([result.loss.sum() for _, _, result in attacks])
        losses[warm] = found.view(5, -1).sum(1)
        attacks.clear()
    assert losses[True][0] == losses[False][0] and torch.allclose(losses[False], losses[False][0])
    assert (losses[True].diff() > -1e-3 * losses[True][0]).all() and losses[True][-1] > 1.001 * losses[False][-1]


@pytest.mark.parametrize("schedule", ["linear_warmup", "uniform", "per_sample"])
def test_every_find_is_in_its_ball_whatever_eps_does(make_trainer, images, processor, attacks, schedule):
    settings = RAMP | {"eps_schedule": schedule, "attack_steps": 2, "num_train_epochs": 5}
    settings |= {"schedule_args": {"levels": 3}} if schedule == "per_sample" else {}
    trainer = make_trainer(train_dataset=with_pixel_values(images, processor, sample_ids=True), **settings)
    trainer.train()
    assert trainer.attack_memory.met == 1.0
    for pixels, eps, result in attacks:
        distance = (result.adversarial.double() - pixels.double()).abs().amax((1, 2, 3))
        assert (distance <= torch.as_tensor(eps).double()).all()
        assert result.adversarial.min() >= 0 and result.adversarial.max() <= 1


def test_the_first_epoch_is_as_without(make_trainer, make_model):
    settings = WARM | {"eps_schedule": "constant", "num_train_epochs": 1}
    first, second = (make_trainer(make_model(), **settings | {"attack_warm_start": warm}) for warm in (True, False))
    first.train()
    second.train()
    assert_same_weights(first.model, second.model)


def test_resuming_equals_an_uninterrupted_run(make_trainer, make_model, tmp_path):
    def build(folder):
        saves = {"save_strategy": "steps", "save_steps": 3, "output_dir": str(tmp_path / folder)}
        return make_trainer(make_model("vit", dropout=0.1), **RAMP, **saves)

    whole = build("whole")
    whole.train()
    for step in (3, 9, 12):  # before anything is known, within an epoch and at its end
        resumed = build("resumed")
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert_same_weights(resumed.model, whole.model)
        for name, tensor in whole.attack_memory.known.items():
            assert torch.equal(resumed.attack_memory.known[name], tensor)
        assert resumed.attack_memory.met == whole.attack_memory.met == 1.0
    assert whole.facts()["training"]["attack_warm_start_met"] == 1.0
    (tmp_path / "whole" / "checkpoint-9" / "attack_memory_0.safetensors").unlink()
    with pytest.raises(ValueError, match="does not hold what the attacks of process 0 found"):
        build("resumed").train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-9"))


def test_a_new_training_knows_nothing(make_trainer):
    trainer = make_trainer(**WARM | {"eps_schedule": "constant"}, num_train_epochs=2)
    trainer.train()
    assert trainer.attack_memory.known
    trainer.train()
    assert len(trainer.attack_memory.found) == 6 and len(trainer.attack_memory.known["keys"]) == 48
    assert trainer.attack_memory.met is None


def test_accumulated_batches_equal_one(make_trainer, make_model):
    trained = []
    for size, accumulated in ((8, 1), (2, 4)):
        batches = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated}
        constant = {"eps_schedule": "constant", "learning_rate": 1e-3, "num_train_epochs": 2}
        trained.append(make_trainer(make_model(), **WARM | constant, **batches))
        trained[-1].train()
    first, second = (weights(trainer.model) for trainer in trained)
    assert all(torch.allclose(first[name], second[name], atol=1e-4) for name in first)


TWO = """
import json
trainer = make_trainer(make_model(), per_device_train_batch_size=4, **{settings!r})
trainer.train()
memory = trainer.attack_memory
total = sum(tensor.double().sum().item() for tensor in trainer.model.parameters())
told = [memory.known["keys"].tolist(), memory.met, total]
json.dump(told, open(folder / f"rank{{trainer.args.process_index}}.json", "w"))
"""


def test_two_processes_know_what_one_does(make_trainer, make_model, tmp_path):
    settings = WARM | {"eps_schedule": "constant", "learning_rate": 1e-3, "num_train_epochs": 3}
    done = run_script(TWO.format(settings=settings), tmp_path / "two", processes=2)
    assert done.returncode == 0, done.stderr
    (keys, met, total), second = (json.loads((tmp_path / f"two/rank{rank}.json").read_text()) for rank in (0, 1))
    one = make_trainer(make_model(), **settings)
    one.train()
    assert [keys, met, total] == second
    assert keys == one.attack_memory.known["keys"].tolist() and len(keys) == 48 and met == 1.0
    assert total == pytest.approx(sum(tensor.double().sum().item() for tensor in one.model.parameters()), abs=1e-3)


def test_no_step_reads_a_value_from_the_device(make_trainer):
    trainer = make_trainer(**RAMP, num_train_epochs=3)
    step, reads = trainer.training_step, HostReads()

    def watch(*args, **kwargs):
        if trainer.state.global_step < 8:  # the second epoch has begun, and its first batch passed
            return step(*args, **kwargs)
        with reads:
            return step(*args, **kwargs)

    trainer.training_step = watch
    trainer.train()
    assert trainer.attack_memory.met > 0 and reads.found == []


# ---- What it refuses -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"attack_random_start": True}, "attack_random_start=True exclude each other: an attack has one starting"),
        ({"mixup_alpha": 0.2}, "mixup_alpha=0.2 exclude each other: a mixed image never comes again"),
        ({"cutmix_alpha": 1.0}, "cutmix_alpha=1.0 exclude each other"),
        ({"attacked_share": 0.5}, "attacked_share=0.5 exclude each other: most images would not"),
        ({"attack_warm_start": "yes"}, "attack_warm_start must be True or False, got 'yes'"),
    ],
)
def test_what_a_warm_start_does_not_go_with_is_refused(make_args, changes, told):
    with pytest.raises(ValueError, match=told):
        make_args(**WARM | changes)


def test_images_that_change_each_epoch_are_an_error_after_the_second(make_trainer):
    class Varied(torch.utils.data.Dataset):
        def __len__(self):
            return 16

        def __getitem__(self, index):
            return {"pixel_values": torch.rand(3, 16, 16) * 0.5, "labels": index % 4}

    trainer = make_trainer(train_dataset=Varied(), data_collator=stack_examples, **RAMP)
    with pytest.raises(ValueError, match="found 0% of this epoch's images as they were in the last one"):
        trainer.train()
    assert trainer.state.global_step == 4  # two epochs of two batches


def test_a_stream_is_refused(make_trainer, images, processor):
    stream = with_pixel_values(Dataset.to_iterable_dataset(images), processor)
    with pytest.raises(ValueError, match="attack_warm_start goes on from the last epoch, and the training data has no"):
        make_trainer(train_dataset=stream, max_steps=4, **RAMP).train()
