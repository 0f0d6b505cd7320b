"""Memory is counted by storage, while something holds it; what the attack takes beside a training pass."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageClassification, ConvNextConfig, ResNetConfig, SwinConfig, ViTConfig

from hf_robust_ft.benchmarks.gpu.memory import attack_peak, training_peak
from hf_robust_ft.benchmarks.live_tensors import LiveTensors


def test_what_nothing_holds_any_more_does_not_count():
    with LiveTensors() as live:
        for _ in range(5):
            x = torch.ones(1000, device="meta") + 1
        assert live.now == 4000
        del x
    assert live.now == 0 and live.peak == 12000


def test_views_in_place_operations_and_older_tensors_take_nothing():
    x = torch.ones(1000)
    with LiveTensors() as live:
        y = x.view(10, 100)[0]
        x.mul_(2)
        y.add_(1)
    assert live.peak == 0


def test_what_autograd_keeps_counts_until_the_backward_pass():
    linear, x = nn.Linear(100, 100), torch.ones(50, 100)
    with LiveTensors() as live:
        loss = linear(x).exp().sum()
        assert live.now >= 50 * 100 * 4
        loss.backward()
        del loss
    assert live.now == sum(each.grad.nbytes for each in linear.parameters())


# Activations of a few hundred times an image's size, as in the networks that are trained.
WIDE = {
    "vit": ViTConfig(image_size=32, patch_size=4, hidden_size=192, num_hidden_layers=3, num_attention_heads=3),
    "swin": SwinConfig(image_size=32, embed_dim=96, depths=[1, 1], num_heads=[3, 6], window_size=4),
    "convnext": ConvNextConfig(hidden_sizes=[96, 192], depths=[2, 2], num_stages=2),
    "resnet": ResNetConfig(embedding_size=32, hidden_sizes=[128, 256], depths=[2, 2]),
}


@pytest.mark.parametrize("kind", WIDE)
def test_the_attack_takes_less_memory_than_a_training_pass(kind):
    """Without weight gradients neither LayerNorm nor BatchNorm keeps what they are made of."""
    with torch.device("meta"):
        model = AutoModelForImageClassification.from_config(WIDE[kind]).train()
    batch = {
        "pixel_values": torch.zeros(8, 3, 32, 32, device="meta"),
        "labels": torch.zeros(8, dtype=torch.long, device="meta"),
    }
    assert attack_peak(model, batch, steps=3) < 0.9 * training_peak(model, batch)
