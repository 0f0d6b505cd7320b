"""FARE: an encoder that stays where it was under attack, by no label, under a head that stands still."""

from types import SimpleNamespace

import pytest
import torch
from conftest import assert_same_weights, weights
from pretrained_norms import pretrained

from hf_robust_ft import APGD, PixelClassifier, ThreatModel, apgd, load_image_classifier
from hf_robust_ft.attacks import attack_mode
from hf_robust_ft.benchmarks.backbone_round_trip import MINIATURE_CLIP, write_open_clip
from hf_robust_ft.data import with_pixel_values
from hf_robust_ft.models.heads import last_linear_layers
from hf_robust_ft.training.objectives import Passes, fare
from hf_robust_ft.training.objectives.head_input import HeadInput
from hf_robust_ft.training.objectives.structures import check_structure
from hf_robust_ft.training.objectives.teacher import FeaturesOf, Teacher, teacher_of
from hf_robust_ft.training.tuning.parts import head_parameters

FARE = {"objective": "fare", "attack_loss": "features", "attack_random_start": True}
QUICK = {"num_train_epochs": 1, "eps_schedule": "constant", "robust_eval": "no"}
BALL = ThreatModel("Linf", "8/255")


@pytest.fixture
def make(make_trainer, make_model):
    def build(kind="vit", seed=0, **changes):
        return make_trainer(pretrained(make_model(kind, seed=seed)), **{**QUICK, **FARE, **changes})

    return build


@pytest.fixture
def batch():
    return torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4


def features_of(model, pixel_values):
    seen = HeadInput(model)
    model.eval()(pixel_values)
    features = seen.take()
    seen.forget()
    return features


@pytest.mark.parametrize("kind", ["vit", "resnet", "timm"])
def test_features_are_what_the_head_makes_the_logits_of(make_model, batch, kind):
    model = make_model(kind).eval()
    features, logits = features_of(model, batch[0]), model(batch[0]).logits
    (head,) = last_linear_layers(model).values()
    assert torch.allclose(head(features), logits, atol=1e-6)


def test_value_and_gradient_are_the_formulas(make_model, batch):
    model = make_model("vit").double().eval()
    teacher = Teacher(model, of_features=True)
    with torch.no_grad():
        for each in model.parameters():
            each.add_(0.1 * torch.randn_like(each))
    clean = batch[0].double()
    adversarial = clean + 0.02 * torch.rand_like(clean)

    def compute_loss(through, inputs):
        return torch.zeros(()), through(inputs["pixel_values"])

    passes = Passes(compute_loss, [model], {"pixel_values": clean, "labels": batch[1]})
    found = fare(passes, clean, adversarial, teacher=teacher)
    expected = (features_of(model, adversarial) - features_of(teacher.model, clean).detach()).square().sum(1).mean()
    assert found.total.item() == pytest.approx(expected.item(), rel=1e-5)
    weight = model.vit.layers[0].mlp.fc1.weight if hasattr(model.vit, "layers") else next(model.vit.parameters())
    ours, theirs = (torch.autograd.grad(each, weight)[0] for each in (found.total, expected))
    assert torch.allclose(ours, theirs, atol=1e-6) and ours.abs().max() > 0


def test_the_attack_climbs_the_distance_inside_the_ball_whatever_the_labels(make_model, batch):
    model, (pixels, labels) = make_model("vit").eval(), batch
    teacher = Teacher(model, of_features=True)
    function = FeaturesOf(PixelClassifier(model), teacher.students, teacher.features({"pixel_values": pixels}))
    attack = APGD(steps=5, loss="features")
    with attack_mode(model):
        found, other = (attack(function, pixels, each, BALL) for each in (labels, (labels + 1) % 4))
        start = BALL.ball(pixels).random_start(torch.Generator())
    assert torch.equal(found.adversarial, other.adversarial)
    assert (found.adversarial - pixels).abs().max() <= BALL.eps + 1e-6
    reference = features_of(teacher.model, pixels)
    at_start, at_end = (
        (features_of(model, each) - reference).square().sum(1) for each in (start, found.adversarial)
    )  # fmt: skip
    assert torch.allclose(found.loss, at_end, rtol=1e-4) and found.loss.mean() > 2 * at_start.mean()
    assert torch.equal(found.fooled, model(found.adversarial).logits.argmax(1) != labels)


def test_no_label_has_a_say(make, dataset):
    """Other labels, the same weights to the bit."""
    examples = [dataset[index] for index in range(len(dataset))]
    others = [{**each, "labels": (each["labels"] + 1) % 4} for each in examples]
    trainers = [make(train_dataset=each, max_steps=4) for each in (examples, others)]
    for trainer in trainers:
        trainer.train()
    assert_same_weights(trainers[0].model, trainers[1].model)


@pytest.mark.parametrize("kind", ["vit", "resnet", "timm"])
def test_the_head_is_the_same_to_the_bit_and_the_encoder_nearer_under_attack(make, kind, dataset):
    """Weight decay included; what it learnt is measured by another attack's start and more steps."""
    trainer = make(kind, num_train_epochs=4, weight_decay=0.1, learning_rate=1e-3, batch_norm="frozen")
    model, teacher = trainer.model, teacher_of(trainer.model)
    before = weights(model)
    batch = trainer.data_collator([dataset[index] for index in range(32)])
    pixels = trainer.pixel_space.clipped_pixels(batch["pixel_values"])

    def distance():
        with attack_mode(model):
            classifier = PixelClassifier(model, trainer.pixel_space)
            function = FeaturesOf(
                classifier, teacher.students, teacher.features({"pixel_values": batch["pixel_values"]})
            )
            return apgd(function, pixels, batch["labels"], BALL, steps=10, loss="features").loss.mean()

    first = distance()
    trainer.train()
    after, head = weights(model), head_parameters(model)
    assert head and all(torch.equal(before[name], after[name]) for name in head)
    assert not torch.equal(torch.cat([each.flatten() for each in before.values()]),
                           torch.cat([each.flatten() for each in after.values()]))  # fmt: skip
    assert distance() < 0.9 * first


@pytest.mark.parametrize("batch_norm", ["frozen", "frozen_from_attack", "trainer"])
def test_statistics_follow_the_policy(make, batch_norm):
    trainer = make("resnet", batch_norm=batch_norm, max_steps=2, learning_rate=1e-3)
    before = weights(trainer.model)
    trainer.train()
    after = weights(trainer.model)
    moved = {name for name in before if "running" in name and not torch.equal(before[name], after[name])}
    assert bool(moved) == (batch_norm == "trainer")


def test_teacher_and_student_agree_until_something_is_attacked(make):
    """Without an attack, and without dropout, there is nothing to learn."""
    trainer = make(
        eps_schedule="hinge", num_train_epochs=4, logging_strategy="steps", logging_steps=1, weight_decay=0.0
    )
    trainer.train()
    rows = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all((row["loss"] == 0) == (row["eps"] == 0) for row in rows) and rows[0]["eps"] == 0 < rows[-1]["eps"]


def test_a_clip_tower_is_trained_and_measured_zero_shot(make_trainer, images, tmp_path):
    """What is published is the tower it was: loaded anew, its zero-shot head to the bit."""
    tower = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32}
    torch.manual_seed(0)
    write_open_clip(tmp_path / "clip", {"embed_dim": 24, "vision_cfg": tower, "text_cfg": MINIATURE_CLIP["text_cfg"]})
    names = ["red", "green", "blue", "yellow"]
    model, processor = load_image_classifier(str(tmp_path / "clip"), label_names=names, head="zero_shot")
    start, data = weights(model), with_pixel_values(images, processor)
    trainer = make_trainer(
        model, train_dataset=data, eval_dataset=data, processing_class=processor, num_train_epochs=1,
        eps_schedule="constant", learning_rate=1e-4, **FARE,
    )  # fmt: skip
    trainer.train()
    found = trainer.evaluate()
    assert 0 <= found["eval_adversarial_accuracy"] <= found["eval_clean_accuracy"] <= 1
    trainer.save_model(str(tmp_path / "published"))
    again, _ = load_image_classifier(str(tmp_path / "published"))
    assert_same_weights(again, trainer.model)
    moved = {name for name, each in again.state_dict().items() if not torch.equal(each, start[name])}
    assert moved and not moved & head_parameters(model)
    assert list(again.config.id2label.values()) == names


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"attack_loss": "ce"}, "objective='fare' and attack_loss='ce' exclude each other"),
        ({"attack_random_start": False}, "attack_loss='features' has no gradient at the image itself"),
        ({"eps": "0", "eval_epsilons": None}, "objective='fare' at eps 0 has nothing to learn"),
        ({"freeze": "backbone"}, "objective='fare' and freeze='backbone' exclude each other"),
        ({"lora_rank": 2}, "objective='fare' and lora_rank=2 exclude each other"),
        ({"head_learning_rate": 0.1}, "objective='fare' and head_learning_rate=0.1 exclude each other"),
        ({"probe_epochs": 1.0, "probe_learning_rate": 1.0}, "objective='fare' and probe_epochs=1.0 exclude each other"),
        ({"torch_compile": True}, "objective='fare' and torch_compile=True exclude each other"),
        ({"label_smoothing_factor": 0.1}, "objective='fare' and label_smoothing_factor=0.1 exclude each other"),
        ({"twins_lambda": 0.5, "batch_norm": "trainer"}, "objective='fare' and twins_lambda exclude each other"),
        ({"objective_beta": 1.0}, "objective_beta=1.0 does nothing with objective='fare'"),
        ({"objective": "trades"}, "objective='trades' and attack_loss='features' exclude each other"),
    ],
)
def test_what_it_cannot_go_with_is_refused_by_name(make_args, changes, told):
    make_args(**FARE)
    with pytest.raises(ValueError, match=told):
        make_args(**{**FARE, **changes})


def test_a_loss_function_of_the_users_is_refused(make):
    with pytest.raises(ValueError, match="objective='fare' has no use for compute_loss_func"):
        make(compute_loss_func=lambda *args, **kwargs: 0)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"is_fsdp_enabled": True}, "objective='fare' is not verified with sharded weights"),
        ({"is_deepspeed_enabled": True}, "objective='fare' is not verified with sharded weights"),
        ({"n_gpu": 2}, "objective='fare' reads features inside the model, which DataParallel copies"),
    ],
)
def test_models_in_pieces_are_refused(make_args, changes, told):
    args = SimpleNamespace(
        objective="fare", has_teacher=True, asks_features=True, structure=None, n_gpu=changes.pop("n_gpu", 1)
    )
    trainer = SimpleNamespace(args=args, is_fsdp_enabled=False, is_deepspeed_enabled=False, compute_loss_func=None)
    vars(trainer).update(changes)
    with pytest.raises(ValueError, match=told):
        check_structure(trainer)


def test_the_loss_is_for_training_alone(make_model, batch):
    with pytest.raises(ValueError, match="compares features with a frozen encoder's, which training"):
        apgd(PixelClassifier(make_model()), *batch, BALL, loss="features")
