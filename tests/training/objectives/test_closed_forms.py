"""TRADES and MART as functions of two sets of logits, beside their formulas in float64."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from hf_robust_ft.training.objectives import Passes, mart, trades
from hf_robust_ft.training.objectives.mart import MARGIN_CAP, margin_of_wrong_class

CLASSES = range(2, 11)


def logits_and_labels(classes, images=32, scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    clean, adversarial = (torch.randn(images, classes, generator=generator) * scale for _ in range(2))
    labels = torch.randint(classes, (images,), generator=generator)
    return clean.requires_grad_(), adversarial.requires_grad_(), labels


def passes_over(labels, went=None):
    """A model whose images are its logits; `went` notes the passes."""

    def compute_loss(model, inputs):
        if went is not None:
            went.append(inputs["pixel_values"])
        return F.cross_entropy(inputs["pixel_values"].float(), inputs["labels"]), {"logits": inputs["pixel_values"]}

    return Passes(compute_loss, itertools.repeat(None), {"pixel_values": None, "labels": labels})


def kl(p, q):
    return (p * (p.log() - q.log())).sum(1)


def trades_in_float64(clean, adversarial, labels, beta):
    clean, adversarial = clean.double(), adversarial.double()
    return F.cross_entropy(clean, labels) + beta * kl(clean.softmax(1), adversarial.softmax(1)).mean()


def mart_in_float64(clean, adversarial, labels, beta):
    p, q = clean.double().softmax(1), adversarial.double().softmax(1)
    is_label = F.one_hot(labels, p.shape[1]).bool()
    margin = -(1 - q.masked_fill(is_label, 0).amax(1) + MARGIN_CAP).log()
    weighted = kl(p, q) * (1 - p[is_label])
    return F.cross_entropy(adversarial.double(), labels) + margin.mean() + beta * weighted.mean()


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize(
    ("objective", "formula", "tolerance"), [(trades, trades_in_float64, 1e-5), (mart, mart_in_float64, 1e-4)]
)
def test_value_and_gradients_are_the_formulas(objective, formula, tolerance, classes):
    clean, adversarial, labels = logits_and_labels(classes)
    total = objective(passes_over(labels), clean, adversarial, beta=2.5).total
    expected = formula(clean, adversarial, labels, 2.5)
    assert total.item() == pytest.approx(expected.item(), rel=tolerance)
    found = torch.autograd.grad(total, [clean, adversarial])
    for ours, theirs in zip(found, torch.autograd.grad(expected, [clean, adversarial]), strict=True):
        assert theirs.abs().max() > 1e-3  # it flows through both
        assert torch.allclose(ours, theirs.float(), atol=tolerance)


def test_trades_counts_no_move_as_nothing():
    clean, _, labels = logits_and_labels(5, scale=8.0)
    same = clean.detach().clone().requires_grad_()
    loss = trades(passes_over(labels), clean, same, beta=6.0)
    assert loss.parts["loss_kl"].item() == 0 and torch.equal(loss.total, loss.parts["loss_clean"])
    (gradient,) = torch.autograd.grad(loss.parts["loss_kl"], same)
    assert gradient.abs().max() < 1e-7


def test_kl_is_never_negative():
    for seed in range(20):
        clean, adversarial, labels = logits_and_labels(7, scale=10.0, seed=seed)
        assert trades(passes_over(labels), clean, adversarial, beta=1.0).parts["loss_kl"].item() >= 0


@pytest.mark.parametrize(("objective", "kept"), [(trades, "clean"), (mart, "adversarial")])
def test_a_weight_of_0_skips_the_pass_it_would_need(objective, kept):
    clean, adversarial, labels = logits_and_labels(4)
    went = []
    loss = objective(passes_over(labels, went), clean, adversarial, beta=0.0)
    assert len(went) == 1 and went[0] is {"clean": clean, "adversarial": adversarial}[kept]
    expected = F.cross_entropy(went[0], labels)
    if objective is mart:
        expected = expected + margin_of_wrong_class(adversarial, labels).mean()
    assert torch.equal(loss.total, expected)


@pytest.mark.parametrize("objective", [trades, mart])
def test_without_an_attack_it_is_trainers_loss_and_names_the_same_parts(objective):
    clean, adversarial, labels = logits_and_labels(4)
    went = []
    loss = objective(passes_over(labels, went), clean, None, beta=6.0)
    assert len(went) == 1 and torch.equal(loss.total, F.cross_entropy(clean, labels))
    attacked = objective(passes_over(labels), clean, adversarial, beta=6.0)
    assert loss.parts.keys() == attacked.parts.keys()
    assert sum(part.item() for part in loss.parts.values()) == loss.total.item()


def test_mart_leaves_alone_what_is_surely_right():
    """p_y(x) = 1 removes the KL term, and its gradient on the adversarial image."""
    labels = torch.tensor([1])
    clean = torch.tensor([[0.0, 200.0, 0.0]], requires_grad=True)
    adversarial = torch.tensor([[1.0, 0.0, 0.5]], requires_grad=True)
    parts = mart(passes_over(labels), clean, adversarial, beta=5.0).parts
    assert parts["loss_kl"].item() == 0
    assert torch.autograd.grad(parts["loss_kl"], adversarial)[0].abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("objective", [trades, mart])
def test_it_stays_finite_at_any_confidence_in_any_precision(objective, dtype):
    clean, adversarial, labels = logits_and_labels(5, images=256)
    clean, adversarial = (
        (100 * each.detach().clamp(-1, 1)).to(dtype).requires_grad_() for each in (clean, adversarial)
    )
    total = objective(passes_over(labels), clean, adversarial, beta=6.0).total
    assert total.dtype == torch.float32 and total.isfinite()
    assert all(each.isfinite().all() for each in torch.autograd.grad(total, [clean, adversarial]))


def test_the_margin_is_capped_and_so_is_its_gradient():
    labels = torch.zeros(4, dtype=torch.long)
    logits = torch.tensor([[-h, h, 0.0] for h in (0.0, 2.0, 8.0, 100.0)], requires_grad=True)
    margin = margin_of_wrong_class(logits, labels)
    assert margin.max() <= -math.log(MARGIN_CAP) + 1e-5 and (margin.diff() > -1e-6).all()
    (gradient,) = torch.autograd.grad(margin.sum(), logits)
    assert gradient[1].abs().max() > 0.1 > 1e-6 > gradient[3].abs().max()


@pytest.mark.parametrize("objective", [trades, mart])
def test_nothing_waits_for_the_device(objective):
    """A meta tensor has no values: anything that reads one raises."""
    clean, adversarial = (torch.zeros(8, 5, device="meta", requires_grad=True) for _ in range(2))
    labels = torch.zeros(8, dtype=torch.long, device="meta")
    loss = objective(passes_over(labels), clean, adversarial, beta=6.0)
    loss.total.backward()
    assert loss.total.device.type == "meta" and clean.grad.shape == (8, 5)
