"""What the meter counts is what the attack was given."""

import pytest
import torch
from torch import nn

from hf_robust_ft.attacks import APGD, GradientMeter
from hf_robust_ft.attacks.threat_model import ThreatModel

BALL = ThreatModel("Linf", 0.1)


class Scaled(nn.Module):
    """Two logits whose gradient with respect to image i is `sizes[i]` in its first three quarters, else zero."""

    def __init__(self, sizes):
        super().__init__()
        self.sizes = torch.tensor(sizes)

    def forward(self, pixels):
        seen = pixels.flatten(1)[:, : pixels[0].numel() * 3 // 4]
        margin = seen.sum(1) * self.sizes
        return torch.stack([margin, torch.zeros_like(margin)], 1)


def run(sizes, steps=3, meter=None):
    meter = meter or GradientMeter()
    pixels, labels = torch.full((len(sizes), 1, 4, 4), 0.5), torch.zeros(len(sizes), dtype=torch.int64)
    attack = APGD(steps=steps, random_start=False)
    return meter, attack(meter(Scaled(sizes)), pixels, labels, BALL), attack(Scaled(sizes), pixels, labels, BALL)


def test_before_any_attack_there_is_nothing_to_read():
    assert GradientMeter().read() is None


def test_shares_are_exact_over_images_and_steps():
    meter, metered, plain = run([1e-3, 0.0, float("nan"), 1e-3])
    assert meter.images == 4 * 3 and meter.entries == 4 * 3 * 16
    lost = meter.read()
    assert lost.unusable == 0.5
    # Of a good image's 16 entries 4 are zero, of the second's all, of the third's the 4 that it does not see.
    assert lost.zero == pytest.approx((2 * 4 + 16 + 4) / 64)
    assert lost.nonfinite == pytest.approx(12 / 64)
    for name in ("adversarial", "fooled", "predictions"):
        assert torch.equal(getattr(metered, name), getattr(plain, name))


def test_attacks_add_up():
    meter, *_ = run([0.0])
    run([1e-3, 1e-3, 1e-3], meter=meter)
    assert meter.read().unusable == 0.25


def test_it_neither_waits_for_the_device_nor_touches_forwards_without_gradients():
    """Meta tensors have no values to wait for."""
    meter = GradientMeter()
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3, device="meta"))
    pixels, labels = torch.empty(2, 3, 4, 4, device="meta"), torch.empty(2, dtype=torch.int64, device="meta")
    APGD(steps=2, random_start=False)(meter(model), pixels, labels, BALL)
    assert meter.images == 4
    with torch.no_grad():
        meter(model)(pixels)
    assert meter.images == 4
