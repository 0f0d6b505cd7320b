"""AutoLoRA's branch: who learns from what, and a model that is the plain one for whoever looks."""

import copy

import pytest
import torch
from conftest import assert_same_weights
from pretrained_norms import pretrained
from torch import nn
from torch.nn import functional as F

from hf_robust_ft.training.objectives import Passes, at
from hf_robust_ft.training.objectives.autolora import BRANCH, NaturalNetwork, add_branch, autolora
from hf_robust_ft.training.objectives.hidden import hidden_tensors
from hf_robust_ft.training.tuning.parts import head_modules, head_parameters

IMAGES = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
FOUND = (IMAGES + 0.1).clamp(0, 1)
LABELS = torch.arange(8) % 4


def with_branch(model, noise=False):
    model = add_branch(pretrained(model), rank=2, seed=3)
    if noise:
        with torch.no_grad():
            for update in model.natural_branch.b.values():
                update.normal_(generator=torch.Generator().manual_seed(1)).mul_(0.1)
    return model


def passes_of(model):
    def compute_loss(through, inputs):
        outputs = through(pixel_values=inputs["pixel_values"])
        return F.cross_entropy(outputs.logits, inputs["labels"]), outputs

    return Passes(compute_loss, iter([model]), {"pixel_values": IMAGES, "labels": LABELS})


def gradients(model, take):
    """Of the total that `take` picks, by part of the model: body, head, branch."""
    model.zero_grad(set_to_none=True)
    take.backward()
    head = head_parameters(model)
    found = {"body": {}, "head": {}, "branch": {}}
    for name, parameter in model.named_parameters():
        kind = "branch" if name.startswith(f"{BRANCH}.") else "head" if name in head else "body"
        if parameter.grad is not None:
            found[kind][name] = parameter.grad.clone()
    return found


@pytest.mark.parametrize("kind", ["resnet", "timm", "vit"])
def test_the_model_is_the_plain_one_and_the_branch_begins_as_it(make_model, kind):
    plain = make_model(kind)
    plain = pretrained(plain) if kind != "vit" else plain
    model = add_branch(copy.deepcopy(plain), rank=2, seed=0)
    assert_same_weights(model, plain)
    for training in (False, True):
        model.train(training)
        expected = plain.train(training)(IMAGES).logits
        assert torch.equal(copy.deepcopy(model)(IMAGES).logits, expected)
        assert torch.equal(NaturalNetwork(model)(IMAGES).logits, expected)
    assert_same_weights(model, plain)  # the branch has moved the same statistics


def test_what_is_adapted_is_all_that_is_dense_between_stem_and_head(make_model):
    adapted = set(with_branch(make_model("resnet")).natural_branch.adapted)
    kernels = {name for name, each in make_model("resnet").named_parameters() if each.ndim == 4 and "encoder" in name}
    assert adapted == kernels
    assert any(each.shape[-1] == 1 for name, each in make_model("resnet").named_parameters() if name in adapted)
    blocks = {name for name, each in make_model("vit").named_parameters() if each.ndim == 2 and ".layers." in name}
    assert set(add_branch(make_model("vit"), 2, 0).natural_branch.adapted) == blocks


def test_the_update_is_that_product_over_the_rank(make_model):
    model = with_branch(make_model("resnet"), noise=True)
    name = "resnet.encoder.stages.0.layers.0.layer.0.convolution.weight"
    weight, branch = model.get_parameter(name), model.natural_branch
    key = branch.adapted[name]
    assert branch.a[key].shape == (2 * 3, weight.shape[1] * 3) and branch.b[key].shape == (weight.shape[0] * 3, 2 * 3)
    expected = weight + (branch.b[key] @ branch.a[key]).view(weight.shape) / 2
    assert torch.equal(branch.updated(name, weight), expected)
    assert branch.updated("resnet.embedder.embedder.convolution.weight", weight).equal(weight)


def test_depthwise_convolutions_have_no_update():
    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 1)
            self.blocks = nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 1)))
            self.fc = nn.Linear(4, 2)

    assert list(add_branch(Body(), 1, 0).natural_branch.adapted) == ["blocks.0.1.weight"]


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_the_natural_loss_trains_branch_and_head_and_never_the_body(make_model, kind):
    model = add_branch(make_model(kind), 2, 0).train()
    loss = F.cross_entropy(NaturalNetwork(model)(pixel_values=IMAGES).logits, LABELS)
    found = gradients(model, loss)
    assert not found["body"] and found["head"]
    assert all(each.any() for name, each in found["branch"].items() if ".b." in name)


def test_the_adversarial_loss_trains_body_and_head_and_never_the_branch(make_model):
    model = with_branch(make_model("resnet"), noise=True).train()
    found = gradients(model, at(passes_of(model), IMAGES, FOUND).total)
    assert found["body"] and found["head"] and not found["branch"]


def test_the_total_is_that_of_its_equation_and_kl_trains_all(make_model):
    model = with_branch(make_model("resnet"), noise=True).eval()  # statistics stand still, so passes can be repeated
    loss = autolora(at, 0.3, 6.0, model)(passes_of(model), IMAGES, FOUND)
    natural, robust = NaturalNetwork(model)(pixel_values=IMAGES).logits, model(FOUND).logits
    p, log_q = natural.softmax(1), robust.log_softmax(1)
    kl = (p * (p.log() - log_q)).sum(1).mean()
    terms = F.cross_entropy(natural, LABELS), F.cross_entropy(robust, LABELS), kl
    assert loss.total.item() == pytest.approx((0.7 * terms[0] + 0.3 * terms[1] + 1.8 * terms[2]).item(), rel=1e-5)
    named = ("loss_natural", "loss_adversarial", "loss_kl", "lambda1", "lambda2")
    assert [loss.parts[name].item() for name in named] == pytest.approx(
        [*[t.item() for t in terms], 0.7, 1.8], rel=1e-5
    )
    found = gradients(model, loss.parts["loss_kl"])
    assert found["body"] and found["branch"] and found["head"]
    assert torch.equal(loss.outputs.logits, robust)


def test_with_both_weights_0_the_rest_learns_what_at_learns_and_statistics_see_both_passes(make_model):
    ours, theirs = with_branch(make_model("resnet")).train(), with_branch(make_model("resnet")).train()
    found = gradients(ours, autolora(at, 1.0, 0.0, ours)(passes_of(ours), IMAGES, FOUND).total)
    expected = gradients(theirs, at(passes_of(theirs), IMAGES, FOUND).total)
    for kind in ("body", "head"):
        assert_same_weights(found[kind], expected[kind])
    assert not any(each.any() for each in found["branch"].values())
    counted = {name: each.item() for name, each in ours.state_dict().items() if "num_batches" in name}
    assert all(each == theirs.state_dict()[name].item() + 1 for name, each in counted.items())


def test_an_accuracy_of_1_leaves_the_natural_loss_without_weight(make_model):
    model = with_branch(make_model("resnet")).eval()
    loss = autolora(at, 1.0, 6.0, model)(passes_of(model), IMAGES, FOUND)
    assert loss.parts["lambda1"] == 0 and loss.parts["lambda2"] == 6


def test_merging_the_branch_would_be_another_network(make_model):
    model = with_branch(make_model("resnet"), noise=True).eval()
    own = model(IMAGES).logits
    assert not torch.allclose(NaturalNetwork(model)(IMAGES).logits, own, atol=1e-3)
    assert all(name.startswith(f"{BRANCH}.") for name in hidden_tensors(model))


def test_the_branch_is_no_part_of_the_head(make_model):
    for kind in ("resnet", "vit", "timm"):
        assert head_modules(add_branch(make_model(kind), 2, 0)) == head_modules(make_model(kind))


def test_the_branch_draws_from_its_seed_alone(make_model):
    model = make_model("vit")
    before = torch.random.get_rng_state()
    first, same, other = (add_branch(copy.deepcopy(model), 2, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert_same_weights(hidden_tensors(first), hidden_tensors(same))
    assert not torch.equal(*(next(iter(each.natural_branch.a.values())) for each in (first, other)))


def test_models_without_layers_to_adapt_are_refused():
    with pytest.raises(ValueError, match="adapts the layers between stem and head, and those of Sequential cannot be"):
        add_branch(nn.Sequential(nn.Conv2d(3, 4, 1)), 2, 0)

    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 3, 1)
            self.blocks = nn.Sequential(nn.Sequential(nn.BatchNorm2d(3)))
            self.fc = nn.Linear(3, 2)

    with pytest.raises(ValueError, match=r"autolora finds no linear layer, .* head of Bare: leave it out and use"):
        add_branch(Bare(), 2, 0)
