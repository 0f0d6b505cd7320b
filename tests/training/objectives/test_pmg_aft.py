"""PMG-AFT: its loss by the formula, plain where nothing is attacked, and what its weights leave out."""

import pytest
import torch
from conftest import assert_same_weights
from pretrained_norms import pretrained
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from hf_robust_ft.training.objectives import Passes, pmg_aft
from hf_robust_ft.training.objectives.teacher import Teacher

QUICK = {"num_train_epochs": 1, "eps_schedule": "constant", "robust_eval": "no"}


def compute_loss(through, inputs):
    logits = through(inputs["pixel_values"])
    return F.cross_entropy(logits, inputs["labels"]), {"logits": logits}


class Linear(torch.nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(classes, 12, dtype=torch.float64))

    def forward(self, pixel_values):
        return pixel_values.flatten(1) @ self.weight.T


@pytest.mark.parametrize("classes", [2, 5, 10])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, 0.0), (0.0, 2.0), (0.0, 0.0)])
def test_value_and_gradient_are_the_formulas(classes, alpha, beta):
    """In float64, with the gradient through both answers of the student and none through the teacher's."""
    torch.manual_seed(classes)
    model = Linear(classes)
    teacher = Teacher(model)
    with torch.no_grad():
        model.weight.add_(torch.randn_like(model.weight))
    clean, adversarial = torch.rand(2, 6, 3, 2, 2, dtype=torch.float64)
    labels = torch.arange(6) % classes
    passes = Passes(compute_loss, [model] * 3, {"pixel_values": clean, "labels": labels})
    found = pmg_aft(passes, clean, adversarial, alpha=alpha, beta=beta, teacher=teacher)
    p, q = (model(each).softmax(1) for each in (adversarial, clean))
    frozen = (adversarial.flatten(1) @ teacher.model.weight.T).softmax(1)
    from_teacher, from_clean = ((p * (p / other).log()).sum(1).mean() for other in (frozen, q))
    expected = F.cross_entropy(model(adversarial), labels) + alpha * from_teacher + beta * from_clean
    assert found.total.item() == pytest.approx(expected.item(), rel=1e-6)
    ours, theirs = (torch.autograd.grad(each, model.weight)[0] for each in (found.total, expected))
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert teacher.model.weight.grad is None
    parts = found.parts
    total = parts["loss_adversarial"] + alpha * parts["loss_teacher"] + beta * parts["loss_kl"]
    assert total.item() == pytest.approx(found.total.item(), rel=1e-6)
    assert (parts["loss_teacher"] > 0) == (alpha > 0) and (parts["loss_kl"] > 0) == (beta > 0)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_at_eps_0_it_is_bitwise_the_plain_trainer(make_trainer, make_model, make_args, kind):
    plain = make_trainer(make_model(kind, dropout=0.1), trainer_cls=Trainer, args=make_args(TrainingArguments))
    plain.train()
    changes = {"eps": "0", "eval_epsilons": None, "batch_norm": "trainer", "objective": "pmg_aft"}
    ours = make_trainer(make_model(kind, dropout=0.1), **changes)  # which sets the seed of dropout again
    ours.train()
    assert_same_weights(ours.model, plain.model)


@pytest.mark.parametrize("batch_norm", ["frozen", "frozen_from_attack", "trainer"])
def test_without_weights_it_is_at_under_every_policy_of_batch_norm(make_trainer, make_model, batch_norm):
    """Bit for bit, statistics among it: neither the teacher nor a clean pass moves anything."""
    settings = {**QUICK, "batch_norm": batch_norm, "max_steps": 3}
    at = make_trainer(pretrained(make_model("resnet")), **settings)
    ours = make_trainer(
        pretrained(make_model("resnet")), objective="pmg_aft", objective_alpha=0.0, objective_beta=0.0, **settings
    )
    for trainer in (at, ours):
        trainer.train()
    assert_same_weights(ours.model, at.model)


def test_the_teacher_holds_the_student_back(make_trainer, make_model):
    """The larger its weight, the nearer the answers stay to those of the start."""
    ends = []
    for alpha in (0.0, 10.0):
        model = make_model("vit")
        images = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        start = model.eval()(images).logits.log_softmax(1).detach()
        settings = {**QUICK, "objective": "pmg_aft", "objective_alpha": alpha, "objective_beta": 0.0, "max_steps": 6}
        make_trainer(model, **settings).train()
        ends.append((model.eval()(images).logits.log_softmax(1) - start).abs().mean().item())
    assert ends[1] < 0.5 * ends[0]


def test_accumulated_batches_are_one_large_batch(make_trainer, make_model):
    trainers = [
        make_trainer(
            make_model("vit"), objective="pmg_aft", per_device_train_batch_size=size, max_grad_norm=0.0, optim="sgd",
            gradient_accumulation_steps=batches, **QUICK,
        )
        for size, batches in ((8, 1), (2, 4))
    ]  # fmt: skip
    for trainer in trainers:
        trainer.train()
    first, second = (trainer.model.state_dict() for trainer in trainers)
    assert all(torch.allclose(first[name], second[name], atol=2e-6) for name in first)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"objective_alpha": -1.0}, "objective_alpha must be finite and not negative, e.g. 1.0; got -1.0."),
        ({"objective": "trades", "objective_alpha": 1.0}, "objective_alpha=1.0 does nothing with objective='trades'"),
        ({"twins_lambda": 0.5, "batch_norm": "trainer"}, "objective='pmg_aft' and twins_lambda exclude each other"),
        ({"autolora": True, "autolora_rate": "off"}, "autolora and objective='pmg_aft' exclude each other"),
        ({"attack_loss": "features", "attack_random_start": True}, "attack_loss='features' exclude each other"),
    ],
)
def test_what_it_cannot_go_with_is_refused_by_name(make_args, changes, told):
    with pytest.raises(ValueError, match=told):
        make_args(**{"objective": "pmg_aft", **changes})


@pytest.mark.parametrize("knows", [True, False])
@pytest.mark.parametrize("objective", ["pmg_aft", "fare"])
def test_a_teacher_that_knows_no_class_is_told_of_once(make_trainer, make_model, caplog, objective, knows):
    model = make_model("vit")
    if knows:
        make_trainer(model, eps="0", eval_epsilons=None, num_train_epochs=20, learning_rate=3e-3).train()
    caplog.clear()
    attack = {"attack_loss": "features", "attack_random_start": True} if objective == "fare" else {}
    make_trainer(model, objective=objective, max_steps=2, robust_eval="no", **attack).train()
    said = [entry for entry in caplog.messages if f"that {objective} holds on to is right for" in entry]
    assert len(said) == (0 if knows else 1), said
