import pytest
import torch
import torch.nn.functional as F

from hf_robust_ft import ThreatModel, apgd
from hf_robust_ft.attacks.losses import (
    LOSSES,
    check_measures,
    dlr,
    dlr_targeted,
    get_loss,
    log_cross_entropy,
    measuring_loss,
)

OF_IMAGES = [name for name, loss in LOSSES.items() if not (loss.dense or loss.given)]


def test_value_is_cross_entropy():
    logits, labels = torch.randn(64, 5) * 4, torch.randint(0, 5, (64,))
    loss = get_loss("ce")
    expected = F.cross_entropy(logits, labels, reduction="none")
    assert torch.allclose(loss.value(loss.objective(logits, labels)), expected, rtol=1e-4, atol=1e-7)


def test_gradient_points_where_cross_entropys_does():
    logits = (torch.randn(64, 5) * 2).requires_grad_()
    labels = torch.randint(0, 5, (64,))
    ours, reference = (
        torch.autograd.grad(losses.sum(), logits)[0]
        for losses in (log_cross_entropy(logits, labels), F.cross_entropy(logits, labels, reduction="none"))
    )
    assert torch.allclose(F.cosine_similarity(ours, reference), torch.ones(64), atol=1e-5)


@pytest.mark.parametrize("margin", [16.0, 60.0, 1000.0])
def test_gradient_survives_a_confident_prediction(margin):
    logits = torch.tensor([[margin, 0.0, -1.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(log_cross_entropy(logits, torch.tensor([0])).sum(), logits)
    assert gradient[0, 0] == pytest.approx(-1, abs=1e-3) and gradient[0, 1] > gradient[0, 2] > 0


def test_half_precision_logits_are_scored_in_float32():
    assert log_cross_entropy(torch.randn(2, 3).bfloat16(), torch.tensor([0, 1])).dtype == torch.float32


def test_dlr_is_the_papers_ratio():
    logits = torch.tensor([[3.0, 1.0, 0.0, -1.0]] * 4)
    expected = torch.tensor([-2 / 3, 2 / 3, 3 / 3, 4 / 3])  # -(z_y - highest other) / (3 - 0)
    assert torch.allclose(dlr(logits, torch.arange(4)), expected)
    order = torch.tensor([2, 0, 3, 1])  # ranks, not positions, count
    assert torch.allclose(dlr(logits[:, order], torch.tensor([1, 3, 0, 2])), expected)


def test_targeted_dlr_is_the_papers_ratio():
    logits = torch.tensor([[3.0, 1.0, 0.0, -2.0, -9.0]] * 4)
    labels, targets = torch.tensor([0, 0, 1, 4]), torch.tensor([1, 4, 0, 2])
    # -(z_y - z_t) / (3 - (0 - 2) / 2)
    assert torch.allclose(dlr_targeted(logits, labels, targets), torch.tensor([-2 / 4, -12 / 4, 2 / 4, 9 / 4]))


def test_targeted_dlr_of_three_classes_repeats_the_third_logit():
    logits = torch.tensor([[3.0, 1.0, 0.0]] * 2)
    losses = dlr_targeted(logits, torch.tensor([0, 0]), torch.tensor([1, 2]))
    assert torch.allclose(losses, torch.tensor([-2 / 3, -1.0]))


@pytest.mark.parametrize("name", ["dlr", "dlr_targeted"])
@pytest.mark.parametrize("num_classes", [3, 4, 10])
def test_ratios_are_blind_to_scale_and_shift_of_the_logits(name, num_classes):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(32, num_classes, generator=generator)
    labels = torch.arange(32) % num_classes
    objective = get_loss(name).objective
    expected = objective(logits, labels, (labels + 1) % num_classes)
    for changed in (100 * logits, 0.01 * logits, logits + 5):
        assert torch.allclose(objective(changed, labels, (labels + 1) % num_classes), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("num_classes", [3, 5])
def test_dlr_tells_what_is_misclassified(num_classes):
    logits = torch.randn(200, num_classes, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(200) % num_classes
    assert torch.equal(dlr(logits, labels) > 0, logits.argmax(1) != labels)


def reference():
    """The logarithm of two clean images' probabilities."""
    return torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.0, 0.0, 3.0, 0.0]]).log_softmax(1)


@pytest.mark.parametrize("name", OF_IMAGES)
@pytest.mark.parametrize("level", [0.0, 1e4])
def test_equal_logits_have_finite_losses_and_gradients(name, level):
    logits = torch.full((2, 4), level, requires_grad=True)
    beside = reference() if get_loss(name).needs_reference else torch.tensor([1, 2])
    losses = get_loss(name).objective(logits, torch.tensor([0, 1]), beside)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    assert losses.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize("name", OF_IMAGES)
def test_every_loss_is_scored_in_float32(name):
    logits = torch.tensor([[3.0, 1.0, 0.0, -1.0]]).bfloat16()
    beside = reference()[:1] if get_loss(name).needs_reference else torch.tensor([1])
    loss = get_loss(name).objective(logits, torch.tensor([0]), beside)
    assert loss.shape == (1,) and loss.dtype == torch.float32


@pytest.mark.parametrize("name", ["dlr", "dlr_targeted"])
@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_two_classes_are_too_few_for_the_ratios(name, eps):
    pixels = torch.rand(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"3 largest logits, but the model has 2 classes\. Use loss='ce'"):
        apgd(lambda x: x.flatten(1)[:, :2], pixels, torch.tensor([0, 1]), ThreatModel("L2", 0.5), loss=name, eps=eps)


def test_an_unknown_loss_lists_the_valid_ones():
    with pytest.raises(ValueError, match=r"Unknown attack loss 'mse'\. Valid losses: ce, dlr, dlr_targeted, kl"):
        get_loss("mse")


def test_kl_is_the_divergence_from_the_clean_answer_whatever_the_label():
    clean, moved = (torch.randn(16, 5, generator=torch.Generator().manual_seed(seed)) * 3 for seed in (0, 1))
    p, q = moved.double().softmax(1), clean.double().softmax(1)
    objective = get_loss("kl").objective
    found = objective(moved, torch.zeros(16, dtype=torch.long), clean.log_softmax(1))
    assert torch.allclose(found, (q * (q.log() - p.log())).sum(1).float(), rtol=1e-4)
    assert torch.equal(found, objective(moved, torch.ones(16, dtype=torch.long), clean.log_softmax(1)))
    assert torch.equal(objective(clean, torch.zeros(16), clean.log_softmax(1)), torch.zeros(16))


def test_what_measures_looks_for_errors():
    assert [measuring_loss(name) for name in OF_IMAGES] == ["ce", "dlr", "dlr_targeted", "ce", "ce"]
    assert measuring_loss("pixel_kl") == "pixel_ce" and measuring_loss("segpgd") == "segpgd"
    for name in ("kl", "features"):
        with pytest.raises(ValueError, match=rf"The loss '{name}' is for attacks in training: .* with loss='ce'"):
            check_measures(name)
    check_measures("dlr")
