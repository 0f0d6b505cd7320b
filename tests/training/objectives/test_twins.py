"""TWINS' layers: a frozen twin beside every BatchNorm, and a model that is the plain one for whoever looks."""

import copy

import pytest
import timm
import torch
from conftest import assert_same_weights, weights
from pretrained_norms import pretrained
from torch import nn

from hf_robust_ft.attacks.model_state import attack_mode
from hf_robust_ft.training.objectives.hidden import hidden_tensors
from hf_robust_ft.training.objectives.twins import Twin, add_twins, through_frozen
from hf_robust_ft.training.tuning.batch_norm import batch_norms

IMAGES = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def logits(model, frozen=False):
    if not frozen:
        return model(IMAGES).logits
    with through_frozen(model):
        return model(IMAGES).logits


@pytest.mark.parametrize("kind", ["resnet", "timm"])
def test_a_model_with_twins_is_the_plain_model(make_model, kind):
    """Keys, weights, classes and logits in either mode."""
    plain = pretrained(make_model(kind))
    model = add_twins(copy.deepcopy(plain))
    assert_same_weights(model, plain)
    norms = {name: type(module) for name, module in plain.named_modules() if module in batch_norms(plain)}
    assert norms.keys() == {name for name, module in model.named_modules() if isinstance(module, Twin)}
    assert all(isinstance(model.get_submodule(name), kind) for name, kind in norms.items())
    for training in (False, True):
        assert torch.equal(logits(model.train(training)), logits(plain.train(training)))
    assert_same_weights(model, plain)  # statistics have moved alike


@pytest.mark.parametrize("kind", ["resnet", "timm"])
def test_the_frozen_branch_is_the_pretrained_network_in_evaluation_whatever_the_other_learns(make_model, kind):
    model = add_twins(pretrained(make_model(kind)))
    before = logits(model.eval()).detach()
    own = {name: tensor.clone() for name, tensor in hidden_tensors(model).items()}
    model.train()
    for _ in range(3):
        logits(model)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Twin):
                module.weight.add_(1.0)
    assert torch.equal(logits(model, frozen=True), before)
    assert_same_weights(hidden_tensors(model), own)


def test_changing_what_is_hidden_leaves_the_model_alone_and_changes_the_branch(make_model):
    model = add_twins(pretrained(make_model("resnet"))).eval()
    own, frozen = logits(model), logits(model, frozen=True)
    for tensor in hidden_tensors(model).values():
        tensor.add_(1)
    assert torch.equal(logits(model), own)
    assert not torch.allclose(logits(model, frozen=True), frozen)


def test_the_branch_is_left_also_after_an_error(make_model):
    model = add_twins(pretrained(make_model("resnet")))
    with pytest.raises(ZeroDivisionError), through_frozen(model):
        raise ZeroDivisionError
    assert not any(module.goes_frozen for module in model.modules() if isinstance(module, Twin))


def test_an_attack_meets_the_adaptive_branch_and_puts_every_mode_back(make_model):
    model = add_twins(pretrained(make_model("resnet"))).train()
    modes = [(module, module.training) for module in model.modules()]
    assert not any(module.training for name, module in model.named_modules() if name.endswith(".frozen"))
    before = weights(model)
    with attack_mode(model):
        found = logits(model)
    assert torch.equal(found, logits(model.eval()))
    model.train()
    assert modes == [(module, module.training) for module in model.modules()]
    assert_same_weights(model, before)


def test_each_branch_trains_its_own_scales_and_both_all_else(make_model):
    model = add_twins(pretrained(make_model("resnet"))).train()
    hidden = set(hidden_tensors(model))
    norms = {name for name, module in model.named_modules() if isinstance(module, Twin)}
    for frozen in (True, False):
        model.zero_grad(set_to_none=True)
        logits(model, frozen).square().sum().backward()
        learns = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        own = {f"{name}.{'frozen.' * frozen}{each}" for name in norms for each in ("weight", "bias")}
        others = {f"{name}.{'frozen.' * (not frozen)}{each}" for name in norms for each in ("weight", "bias")}
        assert own <= learns and not others & learns
        assert learns - own == {name for name, _ in model.named_parameters()} - own - others - hidden


def test_twins_of_what_is_frozen_do_not_train_and_none_do_where_their_branch_has_no_weight(make_model):
    model = pretrained(make_model("resnet"))
    model.resnet.embedder.requires_grad_(False)
    kept = [
        name for name, parameter in add_twins(copy.deepcopy(model)).named_parameters() if not parameter.requires_grad
    ]
    assert any(name.endswith("frozen.weight") for name in kept) and all("embedder" in name for name in kept)
    named = add_twins(model, trains=False).named_parameters()
    assert not any(parameter.requires_grad for name, parameter in named if ".frozen." in name)


def test_a_copy_has_branches_of_its_own(make_model):
    model = add_twins(pretrained(make_model("resnet"))).eval()
    twin = copy.deepcopy(model)
    for tensor in hidden_tensors(twin).values():
        tensor.add_(1)
    with through_frozen(twin):
        assert torch.equal(model(IMAGES).logits, logits(model, frozen=True))
        assert not torch.equal(twin(IMAGES).logits, model(IMAGES).logits)


OTHER_KINDS = {
    "1d": lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3 * 256)),
    "not affine": lambda: nn.BatchNorm2d(3, affine=False),
    "timm with activation": lambda: timm.layers.BatchNormAct2d(3),
    "synchronised": lambda: nn.SyncBatchNorm(3),
    "timm evo": lambda: timm.layers.EvoNorm2dB0(3),
    "timm split": lambda: timm.layers.SplitBatchNorm2d(3),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_every_kind_of_batch_norm_gets_one_twin(kind):
    model = nn.Sequential(OTHER_KINDS[kind]())
    plain = copy.deepcopy(model).eval()
    add_twins(model).eval()
    assert sum(isinstance(module, Twin) for module in model.modules()) == 1
    assert torch.equal(model(IMAGES), plain(IMAGES))
    with through_frozen(model):
        assert torch.equal(model(IMAGES), plain(IMAGES))
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_what_has_no_pretrained_statistics_is_refused(make_model):
    with pytest.raises(
        ValueError, match=r"pairs BatchNorm layers, and ViTFor\w+ has none \(LayerNorm\): .*objective=tra"
    ):
        add_twins(make_model("vit"))
    for norm in (nn.BatchNorm2d(3, track_running_stats=False), nn.LazyBatchNorm2d()):
        with pytest.raises(ValueError, match=r"1 layers of Sequential have none, first 0: load pretrained weights"):
            add_twins(nn.Sequential(norm))
