"""mixup and CutMix: shares of classes in the loss and in the attack, drawn alike whatever else is drawn."""

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_same_weights, weights
from torch import nn

from hf_robust_ft import ThreatModel, apgd
from hf_robust_ft.attacks.losses import log_cross_entropy
from hf_robust_ft.training.mixing import MixedCrossEntropy, MixingArguments

EPS = 8 / 255


def mixed_batch(make_args, key=(0,), **alphas):
    args = make_args(**alphas)
    batch = {"pixel_values": torch.rand(6, 3, 8, 8), "labels": torch.tensor([0, 1, 2, 3, 1, 0])}
    return batch, args.mix(batch, 4, key)


# ---- The mixing ------------------------------------------------------------------------


def test_mixup_weighs_images_and_labels_alike(make_args):
    batch, mixed = mixed_batch(make_args, mixup_alpha=1.0)
    before = batch["pixel_values"].roll(1, 0)
    share = ((mixed["pixel_values"] - before) / (batch["pixel_values"] - before)).median()
    assert 0 < share < 1
    assert torch.allclose(mixed["pixel_values"], batch["pixel_values"].lerp(before, 1 - share), atol=1e-5)
    own = F.one_hot(batch["labels"], 4).float()
    assert torch.allclose(mixed["labels"], own.lerp(own.roll(1, 0), 1 - share), atol=1e-5)


def test_cutmix_takes_a_box_whose_area_is_the_labels_share(make_args):
    batch, mixed = mixed_batch(make_args, (3,), cutmix_alpha=1.0)
    taken = (mixed["pixel_values"] != batch["pixel_values"]).any(1)
    assert torch.equal(mixed["pixel_values"][:, :, taken[0]], batch["pixel_values"].roll(1, 0)[:, :, taken[0]])
    assert (taken == taken[0]).all() and 0 < taken[0].float().mean() < 1
    assert mixed["labels"][0, 0] == 1, "image 0 has the class of the one before it"
    assert mixed["labels"][1, 1] == pytest.approx(1 - taken[0].float().mean().item(), abs=1e-5)


def test_with_both_a_batch_is_mixed_by_one_of_them(make_args):
    batches = [mixed_batch(make_args, (key,), mixup_alpha=1.0, cutmix_alpha=1.0) for key in range(12)]
    boxes = [bool((new["pixel_values"] == old["pixel_values"]).flatten(1).any(1).all()) for old, new in batches]
    assert any(boxes) and not all(boxes)


def test_a_draw_depends_on_its_key_alone_and_moves_no_other(make_args):
    before = torch.get_rng_state()
    args = make_args(mixup_alpha=0.4)
    batch = {"pixel_values": torch.rand(4, 3, 8, 8), "labels": torch.arange(4)}
    torch.set_rng_state(before)
    first = args.mix(batch, 4, (7, 1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert torch.equal(args.mix(batch, 4, (7, 1))["pixel_values"], first["pixel_values"])
    assert not torch.equal(args.mix(batch, 4, (7, 2))["pixel_values"], first["pixel_values"])


# ---- The losses ------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_two_classes_losses_by_their_shares(smoothing):
    logits, first, second = torch.randn(5, 4), torch.arange(5) % 4, (torch.arange(5) + 1) % 4
    shares = 0.7 * F.one_hot(first, 4).float() + 0.3 * F.one_hot(second, 4).float()
    loss = MixedCrossEntropy(smoothing)
    wanted = 0.7 * loss(logits, first) + 0.3 * loss(logits, second)
    assert torch.allclose(loss(logits, shares), wanted, atol=1e-6)
    assert torch.allclose(loss(logits, shares, torch.tensor(10)), wanted * 5 / 10, atol=1e-6)


def test_the_attacks_loss_of_one_class_is_that_of_its_label_also_where_cross_entropy_rounds_to_0():
    logits = torch.tensor([[60.0, 0.0, -5.0], [0.1, 0.2, 0.3]], requires_grad=True)
    labels = torch.tensor([0, 2])
    shares = F.one_hot(labels, 3).float()
    assert torch.equal(log_cross_entropy(logits, shares), log_cross_entropy(logits, labels))
    (gradient,) = torch.autograd.grad(log_cross_entropy(logits, shares).sum(), logits)
    assert gradient.isfinite().all() and (gradient[0].abs().sum() > 0.1)


def test_the_attack_climbs_the_mixed_loss_inside_the_ball():
    torch.manual_seed(0)
    model, pixels = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), torch.rand(6, 3, 8, 8)
    shares = torch.rand(6, 4).softmax(1)
    found = apgd(model, pixels, shares, ThreatModel("Linf", EPS), steps=5)
    clean = F.cross_entropy(model(pixels), shares, reduction="none")
    after = F.cross_entropy(model(found.adversarial), shares, reduction="none")
    assert (after > clean).all() and torch.allclose(after, found.loss, atol=1e-5)
    assert (found.adversarial - pixels).abs().max() <= EPS + 1e-6
    assert torch.equal(found.fooled, found.predictions != shares.argmax(1))


# ---- Training --------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["at", "trades", "pmg_aft"])
@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_mixed_images_are_attacked_and_trained_on(make_trainer, make_model, objective, kind):
    trainer = make_trainer(
        make_model(kind),
        objective=objective,
        mixup_alpha=0.4,
        cutmix_alpha=1.0,
        eps_schedule="constant",
        max_steps=2,
        robust_eval="no",
    )
    seen, attack = [], trainer.adversary.attack
    trainer.adversary.attack = lambda model, inputs, *args, **kwargs: (
        seen.append(inputs["labels"].shape) or attack(model, inputs, *args, **kwargs)
    )
    trainer.train()
    assert (8, 4) in seen
    assert all(torch.isfinite(weight).all() for weight in trainer.model.parameters())
    assert trainer.evaluate()["eval_clean_accuracy"] >= 0


def softened(inputs, num_labels, key):
    """In place of a draw: each image of 0.7 of its class and 0.3 of the next, whatever batch it is in."""
    own = F.one_hot(inputs["labels"], num_labels).float()
    return {**inputs, "labels": 0.7 * own + 0.3 * own.roll(1, 1)}


@pytest.mark.parametrize("objective", ["at", "trades"])
def test_accumulated_batches_weigh_as_one(make_trainer, make_model, monkeypatch, objective):
    monkeypatch.setattr(MixingArguments, "mix", lambda args, *given: softened(*given))
    settings = {"mixup_alpha": 0.2, "eps_schedule": "constant", "objective": objective, "max_steps": 2}
    settings |= {"optim": "sgd", "learning_rate": 0.05}
    models = []
    for size, times in ((8, 1), (4, 2)):
        trainer = make_trainer(
            make_model("vit"), per_device_train_batch_size=size, gradient_accumulation_steps=times, **settings
        )
        trainer.train()
        models.append(weights(trainer.model))
    assert all(torch.allclose(first, models[1][name], atol=1e-5) for name, first in models[0].items())


def test_a_run_that_goes_on_draws_as_the_one_that_was_left_alone(make_trainer, make_model):
    settings = {"mixup_alpha": 0.4, "cutmix_alpha": 0.4, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    settings |= {"eps_schedule": "constant"}
    whole = make_trainer(make_model("vit"), **settings)
    whole.train()
    resumed = make_trainer(make_model("vit"), **settings)
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-2")
    assert_same_weights(resumed.model, whole.model)


# ---- What it refuses --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixup_alpha": -0.1}, "mixup_alpha must be finite and not negative, e.g. 0.2, 0 for none; got -0.1"),
        ({"cutmix_alpha": "1"}, "cutmix_alpha must be finite and not negative"),
        ({"mixup_alpha": True}, "mixup_alpha must be finite and not negative"),
        (
            {"mixup_alpha": 0.2, "objective": "mart"},
            "objective='mart' exclude each other: it needs images of one class",
        ),
        ({"mixup_alpha": 0.2, "attack_loss": "dlr"}, "attack_loss='dlr' exclude each other"),
        ({"cutmix_alpha": 1.0, "eps_schedule": "per_sample"}, "eps_schedule='per_sample' exclude each other"),
        ({"mixup_alpha": 0.2, "twins_lambda": 0.4, "batch_norm": "trainer"}, "twins_lambda=0.4 exclude each other"),
    ],
)
def test_what_mixed_images_cannot_go_with_is_refused(make_args, settings, message):
    with pytest.raises(ValueError, match=message):
        make_args(**settings)


def test_a_loss_function_of_ones_own_is_refused(make_trainer):
    with pytest.raises(ValueError, match="compute_loss_func is given classes"):
        make_trainer(mixup_alpha=0.2, compute_loss_func=lambda outputs, labels, num_items_in_batch=None: 0)
