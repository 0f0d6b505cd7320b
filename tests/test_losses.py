import pytest
import torch
import torch.nn.functional as F

from hf_robust_ft.losses import get_loss, log_cross_entropy


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
