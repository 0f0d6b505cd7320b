"""Attacks on a share of each batch, and small images at first: what they touch, what they leave, what they refuse."""

import pytest
from conftest import assert_same_weights
from tiny_segmenters import scenes, segformer
from torch import nn

from hf_robust_ft import AdversarialTrainer, PixelSpace
from hf_robust_ft.benchmarks.gpu.synchronisation import HostReads
from hf_robust_ft.data import with_pixel_values
from hf_robust_ft.training.pass_saving import NO_SAVINGS

FEW = {"eps_schedule": "constant", "num_train_epochs": 1, "robust_eval": "no"}


@pytest.fixture
def trained_on(monkeypatch):
    """Trains and gives each step's images: those of the data and those that the model learnt from."""

    def watch(trainer):
        seen, before = [], trainer.compute_loss

        def compute_loss(model, inputs, *args, **kwargs):
            def note(module, positional, keywords):
                if module.training:
                    seen.append((inputs["pixel_values"], keywords["pixel_values"].detach()))

            handle = trainer.model.register_forward_pre_hook(note, with_kwargs=True)
            try:
                return before(model, inputs, *args, **kwargs)
            finally:
                handle.remove()

        monkeypatch.setattr(trainer, "compute_loss", compute_loss)
        trainer.train()
        return seen

    return watch


def test_off_they_change_nothing(make_trainer, make_model):
    first, second = make_trainer(make_model(), **FEW), make_trainer(make_model(), **FEW, **NO_SAVINGS)
    first.train()
    second.train()
    assert_same_weights(first.model, second.model)
    assert not NO_SAVINGS.keys() & first.facts()["training"].keys()


# ---- A share of the batch --------------------------------------------------------------


@pytest.mark.parametrize(("share", "attacked"), [(0.5, 4), (0.51, 5), (0.01, 1), (1.0, 8)])
def test_the_first_of_a_batch_are_attacked_and_the_others_left(make_trainer, trained_on, share, attacked):
    trainer = make_trainer(attacked_share=share, **FEW)
    for given, learnt in trained_on(trainer):
        moved = (given != learnt).flatten(1).any(1)
        assert moved[:attacked].all() and not moved[attacked:].any()
    assert trainer.args.attacked_of(8 + 8 + 3) == 2 * attacked + trainer.args.attacked_in_batch(3)
    assert trainer.state.log_history[0]["attack_loss_seen"] == pytest.approx(1.0, abs=1e-4)


def test_a_share_goes_with_a_guard_and_with_images_of_their_own_eps(make_trainer, images, processor):
    few = {"attack_steps_schedule": "linear_warmup", "attack_guard": 0.5, "attack_guard_every": 1}
    own = {"eps_schedule": "per_sample", "schedule_args": {"levels": 2}, "num_train_epochs": 3}
    dataset = with_pixel_values(images, processor, sample_ids=True)
    trainer = make_trainer(train_dataset=dataset, attacked_share=0.5, **FEW | few | own)
    trainer.train()
    assert 0 < len(trainer.scheduler_callback.memory["levels"]) <= 3 * 6 * 4 and trainer.overfitting_guard.checked_at


def test_accumulated_shares_and_no_value_read(make_trainer, make_model):
    """Whole batches are not equal to accumulated ones here, which attack other images; each attacks its first."""
    trainer = make_trainer(make_model(), attacked_share=0.5, gradient_accumulation_steps=2, **FEW)
    step, reads = trainer.training_step, HostReads()

    def watch(*args, **kwargs):
        if trainer.state.global_step < 1:
            return step(*args, **kwargs)
        with reads:
            return step(*args, **kwargs)

    trainer.training_step = watch
    trainer.train()
    assert reads.found == [] and trainer.state.global_step == 3


# ---- Small images at first -------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vit", "resnet", "timm"])
def test_images_are_small_until_their_share_of_training(make_trainer, make_model, trained_on, kind):
    trainer = make_trainer(
        make_model(kind), low_resolution=0.5, low_resolution_until=0.5, **FEW | {"num_train_epochs": 4}
    )
    seen = trained_on(trainer)
    assert [learnt.shape[-2:] for _, learnt in seen] == [(8, 8)] * 12 + [(16, 16)] * 12
    for given, learnt in seen:
        space = trainer.pixel_space
        pixels = space.to_pixels(learnt)
        assert pixels.min() > -1e-6 and pixels.max() < 1 + 1e-6
        small = nn.functional.interpolate(given, learnt.shape[-2:], mode="bilinear", antialias=True)
        assert ((pixels - space.to_pixels(small)).abs() <= 8 / 255 + 1e-6).all()
        assert (learnt != small).any()
    trainer.evaluate()  # at its own size, where a ViT is not asked to interpolate


def test_small_images_resume_to_the_bit(make_trainer, make_model, tmp_path):
    def build(folder):
        settings = {"low_resolution": 0.5, "attack_warm_start": True, "eps_schedule": "constant", "robust_eval": "no"}
        saves = {"save_strategy": "steps", "save_steps": 9, "output_dir": str(tmp_path / folder)}
        return make_trainer(make_model("vit", dropout=0.1), **settings, **saves)

    whole, resumed = build("whole"), build("resumed")
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-9"))
    assert_same_weights(resumed.model, whole.model)


class OfOneSize(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3 * 16 * 16, 4)

    def forward(self, pixel_values, labels=None):
        logits = self.head(pixel_values.flatten(1))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


def test_a_network_of_one_size_is_refused_before_a_step(make_trainer):
    trainer = make_trainer(OfOneSize(), low_resolution=0.5, **FEW)
    with pytest.raises(ValueError, match=r"makes images of 8 x 8 pixels, which OfOneSize does not take.*Leave it out"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_masks_refuse_small_images_and_take_the_rest(make_args):
    def build(**changes):
        args = make_args(**FEW | {"num_train_epochs": 3, "eval_epsilons": None} | changes)
        return AdversarialTrainer(segformer(), args, train_dataset=scenes(), pixel_space=PixelSpace())

    with pytest.raises(ValueError, match=r"low_resolution=0\.5 is for image classification, and Segformer"):
        build(low_resolution=0.5)
    for changes in ({"attack_warm_start": True}, {"attacked_share": 0.5}):
        trainer = build(**changes)
        trainer.train()
        assert trainer.attack_memory is None or trainer.attack_memory.met == 1.0


# ---- What is refused -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"attacked_share": 0}, r"attacked_share is a share in \(0, 1\], e.g. 0.5; got 0"),
        ({"attacked_share": "half"}, r"attacked_share is a share in \(0, 1\], e.g. 0.5; got 'half'"),
        ({"low_resolution": 2.0}, "low_resolution is a share"),
        ({"low_resolution_until": -0.1}, "low_resolution_until is a share"),
        ({"low_resolution_until": 0.3}, "low_resolution_until does nothing without low_resolution"),
        (
            {"low_resolution": 0.5, "norm": "L2", "eps": "0.5", "eval_epsilons": None},
            "an eps of L2 means another thing",
        ),
        ({"attacked_share": 0.5, "objective": "trades"}, "objective='trades' exclude each other: it compares"),
        ({"attacked_share": 0.5, "twins_lambda": 0.4, "batch_norm": "trainer"}, "twins_lambda=0.4 exclude each other"),
        ({"attacked_share": 0.5, "autolora": True, "autolora_rate": "off"}, "autolora=True exclude each other"),
    ],
)
def test_what_means_nothing_is_refused(make_args, changes, told):
    with pytest.raises(ValueError, match=told):
        make_args(**changes)
