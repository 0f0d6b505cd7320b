"""BatchNorm under attack answers and differentiates to the bit as PyTorch's own, and keeps no activation."""

import pytest
import torch
from torch import nn

from hf_robust_ft.attacks import APGD, attack_mode, frozen_batch_norm
from hf_robust_ft.attacks.frozen_batch_norm import can_be_frozen, freeze, thaw
from hf_robust_ft.attacks.threat_model import ThreatModel

LAYOUTS = torch.contiguous_format, torch.channels_last


def norm_layer(kind: str = "torch") -> nn.Module:
    if kind == "timm":
        module = pytest.importorskip("timm.layers").BatchNormAct2d(6)
    else:
        module = nn.BatchNorm2d(6, affine=kind != "torch, no weights")
    for each in (module.running_mean, module.running_var, *module.parameters()):
        nn.init.uniform_(each, 0.3, 2)
    return module.eval().requires_grad_(False)


def passes(module: nn.Module, x: torch.Tensor, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Answer, gradient of the input, and how many values autograd kept between."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each.numel()) or each, lambda each: each):
        x = x.detach().requires_grad_()
        answer = module(x)
    return answer.detach(), torch.autograd.grad(answer, x, gradient)[0], sum(count for count in kept if count > 6)


@pytest.mark.parametrize("kind", ["torch", "torch, no weights", "timm"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("gradient_layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_and_gradients_are_pytorchs_to_the_bit(kind, layout, gradient_layout, dtype):
    module = norm_layer(kind)
    x, gradient = torch.randn(2, 2, 6, 5, 7).to(dtype)
    x, gradient = x.to(memory_format=layout), gradient.to(memory_format=gradient_layout)
    answer, own, kept = passes(module, x, gradient)
    freeze(module)
    frozen_answer, frozen, frozen_kept = passes(module, x, gradient)
    assert torch.equal(answer, frozen_answer) and torch.equal(own, frozen)
    assert own.stride() == frozen.stride() and answer.stride() == frozen_answer.stride()
    assert frozen_kept == kept - x.numel()  # timm's activation keeps its own


def test_a_replica_of_data_parallel_takes_its_own_statistics():
    module = norm_layer()
    freeze(module)
    replica = module._replicate_for_data_parallel()
    replica.running_mean, replica.running_var = torch.zeros(6), torch.ones(6)
    replica.weight, replica.bias = torch.ones(6), torch.zeros(6)
    x = torch.randn(2, 6, 5, 5)
    answer, gradient, _ = passes(replica, x, torch.ones_like(x))
    torch.testing.assert_close(answer, x / (1 + module.eps) ** 0.5)
    torch.testing.assert_close(gradient, torch.ones_like(x) / (1 + module.eps) ** 0.5)


@pytest.mark.parametrize("change", [nn.Module.train, nn.Module.requires_grad_], ids=["training", "trainable"])
def test_statistics_or_weights_that_move_are_left_to_pytorch(change):
    module = change(norm_layer())
    freeze(module)
    assert passes(module, torch.randn(2, 6, 5, 5), torch.randn(2, 6, 5, 5))[2] > 0


def test_only_known_batch_norm_by_running_statistics_is_frozen():
    class Shifted(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x) + 1

    assert can_be_frozen(nn.BatchNorm1d(6)) and can_be_frozen(nn.SyncBatchNorm(6)) and can_be_frozen(norm_layer("timm"))
    others = [Shifted(6), nn.BatchNorm2d(6, track_running_stats=False), nn.LayerNorm(6), nn.InstanceNorm2d(6)]
    assert not any(map(can_be_frozen, others))


def test_after_an_attack_modules_are_as_before_whatever_happened(make_model):
    model = make_model("resnet")
    before = [(type(module), set(vars(module))) for module in model.modules()]
    with pytest.raises(RuntimeError, match="boom"), attack_mode(model), attack_mode(model):
        assert any(type(module) is not kind for module, (kind, _) in zip(model.modules(), before, strict=True))
        raise RuntimeError("boom")
    assert [(type(module), set(vars(module))) for module in model.modules()] == before


def test_attacks_find_the_same_images_to_the_bit(make_model, monkeypatch):
    model, pixels, labels = make_model("resnet"), torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 0, 1])

    def attacked():
        with attack_mode(model):
            return APGD(steps=5)(lambda x: model(x).logits, pixels, labels, ThreatModel("L2", 0.5)).adversarial

    found = attacked()
    monkeypatch.setattr(frozen_batch_norm, "can_be_frozen", lambda module: False)
    assert torch.equal(found, attacked())


def test_thawed_it_is_pytorchs_again():
    module = norm_layer()
    freeze(module)
    thaw(module)
    assert type(module) is nn.BatchNorm2d
