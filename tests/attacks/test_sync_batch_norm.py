"""SyncBatchNorm under attack: converted models give the same logits, and an attack leaves their statistics alone."""

import pytest
import timm
import torch
from conftest import assert_same_weights, weights
from torch import nn

from hf_robust_ft.attacks import APGD, attack_mode
from hf_robust_ft.attacks.pixels import PixelClassifier
from hf_robust_ft.attacks.threat_model import ThreatModel

CONVERSIONS = {"resnet": nn.SyncBatchNorm.convert_sync_batchnorm, "timm": timm.layers.convert_sync_batchnorm}


def attacked(model, pixels, labels):
    """Training mode, as in a training step: a SyncBatchNorm that computed statistics here would raise on CPU."""
    model.train()
    with attack_mode(model):
        return APGD(steps=3, random_start=False)(PixelClassifier(model), pixels, labels, ThreatModel("Linf", 0.05))


@pytest.mark.parametrize("kind", CONVERSIONS)
def test_a_converted_model_is_attacked_alike_and_keeps_its_statistics(make_model, kind):
    pixels, labels = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(4)
    expected = attacked(make_model(kind), pixels, labels)
    model = CONVERSIONS[kind](make_model(kind))
    synchronised = [module for module in model.modules() if isinstance(module, nn.SyncBatchNorm)]
    assert synchronised and not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    before = weights(model)
    found = attacked(model, pixels, labels)
    assert_same_weights(model, before)
    assert all(module.training for module in synchronised)
    assert torch.equal(found.adversarial, expected.adversarial) and torch.equal(found.fooled, expected.fooled)


def test_torch_s_own_conversion_loses_the_activation_in_timm_s_layers():
    """Why the README names timm's for timm models; fails when torch or timm mends it."""
    layer, x = timm.layers.BatchNormAct2d(3).eval(), -torch.ones(1, 3, 2, 2)
    assert (layer(x) == 0).all()  # ReLU
    assert (nn.SyncBatchNorm.convert_sync_batchnorm(layer)(x) < 0).all()
    assert (timm.layers.convert_sync_batchnorm(layer)(x) == 0).all()
