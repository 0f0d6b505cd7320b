import pytest
import torch
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification
from transformers.modeling_outputs import ImageClassifierOutput

from hf_robust_ft.experiments.planning import flops
from hf_robust_ft.experiments.planning.architecture import bare_model
from hf_robust_ft.experiments.planning.flops import PassFlops, count_flops


class Layers(nn.Module):
    """One convolution, 8 x 8 pixels to 4 x 4, and a head: costs that can be worked out by hand."""

    def __init__(self, groups: int):
        super().__init__()
        self.convolution = nn.Conv2d(4, 8, 2, stride=2, groups=groups, bias=False)
        self.head = nn.Linear(8, 5, bias=False)

    def forward(self, pixel_values):
        return ImageClassifierOutput(logits=self.head(self.convolution(pixel_values).mean((2, 3))))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_flops_are_those_worked_out_by_hand(groups, device):
    with torch.device(device):
        model = Layers(groups)
    convolution, head = 2 * 8 * 4 * 4 * (4 // groups) * 2 * 2, 2 * 8 * 5
    found = count_flops(model, (8, 8), channels=4)
    assert found.forward == convolution + head
    assert found.input_gradient == 2 * (convolution + head)
    assert found.training == 2 * convolution + 3 * head  # the first layer's input needs no gradient


def test_one_structure_is_counted_once_and_another_one_anew(make_model, monkeypatch):
    counted = []
    monkeypatch.setattr(flops, "_COUNTED", {})
    monkeypatch.setattr(flops, "_count", lambda *given: counted.append(given) or PassFlops(1, 2, 3))
    for _ in range(2):
        count_flops(make_model("resnet"), (16, 16))
    assert len(counted) == 1
    frozen = make_model("resnet").requires_grad_(False)
    for model, size in ((frozen, 16), (frozen, 32), (make_model("vit"), 16)):
        count_flops(model, (size, size))
    assert len(counted) == 4


def test_frozen_weights_cost_no_gradient_and_nothing_is_changed(make_model):
    model = make_model("resnet").eval()
    whole = count_flops(model, (16, 16))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("classifier."))
    model.classifier.train()
    before = [parameter.requires_grad for parameter in model.parameters()]
    frozen = count_flops(model, (16, 16))
    assert frozen.forward == whole.forward and frozen.input_gradient == whole.input_gradient
    assert whole.forward < frozen.training < 1.1 * whole.forward
    assert [parameter.requires_grad for parameter in model.parameters()] == before
    assert model.classifier.training and not model.resnet.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("model_id", "image_size", "gflops", "millions"),
    [
        # Multiply-adds as commonly stated: 4.09e9 for ResNet-50 (v1.5), 0.385e9 for EfficientNet-Lite0.
        ("r50", None, 2 * 4.09, 23.7),
        ("efficientnet_lite0", None, 2 * 0.385, 3.5),
    ],
)
def test_known_architectures_have_their_known_cost(model_id, image_size, gflops, millions):
    bare = bare_model(model_id, 100, image_size=image_size)
    flops = count_flops(bare.model, bare.input_size)
    assert flops.forward / 1e9 == pytest.approx(gflops, rel=0.02)
    assert sum(entry.numel() for entry in bare.model.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
    assert 1.9 < flops.input_gradient / flops.forward < 2.1 and 2.8 < flops.training / flops.forward < 3.0


def test_the_counter_agrees_between_cpu_and_meta():
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=4)
    with torch.device("meta"):
        bare = ResNetForImageClassification(config)
    assert count_flops(bare, (32, 32)) == count_flops(ResNetForImageClassification(config), (32, 32))
