import pytest
import torch
from torch import nn

from hf_robust_ft.evaluation.output_checks import check_alone, check_deterministic

IMAGES = torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def linear(classes=5):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(classes, 3 * 8 * 8, generator=generator) / 10
    return lambda pixels: (pixels - 0.5).flatten(1) @ weight.T


def test_noise_is_measured_against_the_top_two_logits():
    """A class at -1e5 made the range of all logits hide that most predictions change."""
    noise, model = torch.Generator().manual_seed(1), linear()

    def noisy(pixels):
        logits = model(pixels) + 2 * torch.randn(len(pixels), 5, generator=noise)
        return torch.cat([logits, torch.full_like(logits[:, :1], -1e5)], 1)

    found, _ = check_deterministic(noisy, [IMAGES])
    assert not found.passed and found.value > 0.1


def test_a_single_changed_prediction_fails():
    passes = []

    def wavering(pixels):
        passes.append(len(pixels))
        top = torch.zeros(len(pixels), 3)
        top[:, 0] = 1e-6 * (-1) ** len(passes)
        top[:16, 1] = 100.0
        return top

    found, logits = check_deterministic(wavering, [IMAGES])
    assert found.value < 1e-4 and not found.passed and "50.0% of the predictions change" in found.sentence
    assert logits.shape == (32, 3)


@pytest.mark.parametrize("kind", ["batch norm", "largest of the batch"])
def test_logits_that_depend_on_the_batch_are_found(kind):
    norm, model = nn.BatchNorm2d(3, affine=False).train(), linear()
    among = norm if kind == "batch norm" else lambda pixels: pixels / pixels.mean((1, 2, 3), keepdim=True).amax()
    defended = lambda pixels: model(among(pixels))  # noqa: E731
    found = check_alone(defended, IMAGES, defended(IMAGES))
    assert not found.passed and found.value > 0.01 and "BatchNorm" in found.sentence
    assert check_alone(model, IMAGES, model(IMAGES)).passed


def test_rounding_of_half_precision_passes():
    model = linear()
    half = lambda pixels: model(pixels).bfloat16()  # noqa: E731
    logits = half(IMAGES).float()
    found = check_alone(half, IMAGES, logits + 0.01 * logits.abs().max())
    assert found.passed and found.value > 0


def test_a_layer_that_needs_two_values_is_asked_with_two():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.BatchNorm1d(4))
    assert not check_alone(model, IMAGES, model(IMAGES).detach()).passed


def test_outputs_that_are_nan_alone_fail():
    found = check_alone(lambda pixels: linear()(pixels) * torch.nan, IMAGES, linear()(IMAGES))
    assert not found.passed and found.value is None
