"""Memory layouts; modes and frozen parameters are tested with the attack, in test_apgd.py."""

import pytest
import torch
from conftest import assert_same_weights, weights
from torch import nn

from hf_robust_ft.attacks import fast_memory_format, use_fast_memory_format


def kernels(model):
    return [parameter for parameter in model.parameters() if parameter.ndim == 4 and parameter.shape[-1] > 1]


def strides(model):
    return [parameter.stride() for parameter in model.parameters()]


def test_a_convolutional_model_is_converted_for_a_while(make_model):
    model = make_model("resnet")
    before, values = strides(model), weights(model)
    parameters = list(model.parameters())
    assert not any(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels(model))
    with fast_memory_format(model) as layout:
        assert layout == "channels_last"
        assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels(model))
        assert_same_weights(values, model)
    assert strides(model) == before
    assert_same_weights(values, model)
    assert all(map(lambda old, new: old is new, parameters, model.parameters()))  # an optimizer's references hold


def test_the_layout_comes_back_after_an_exception(make_model):
    model = make_model("resnet")
    before, values = strides(model), weights(model)
    with pytest.raises(RuntimeError, match="boom"), fast_memory_format(model):
        raise RuntimeError("boom")
    assert strides(model) == before
    assert_same_weights(values, model)


def test_a_vision_transformer_stays_as_it_is(make_model):
    model = make_model("vit")
    before = strides(model)
    with fast_memory_format(model) as layout:
        assert layout == "contiguous" and strides(model) == before
    assert strides(model) == before


def test_a_model_in_channels_last_stays_so(make_model):
    model = make_model("resnet").to(memory_format=torch.channels_last)
    before = strides(model)
    with fast_memory_format(model) as layout:
        assert layout == "channels_last"
    assert strides(model) == before


def test_what_changes_inside_is_kept(make_model):
    model = make_model("resnet")
    before = strides(model)
    expected = [kernel.detach() + 1 for kernel in kernels(model)]
    with fast_memory_format(model), torch.no_grad():
        for kernel in kernels(model):
            kernel.add_(1)
    assert strides(model) == before and all(map(torch.equal, kernels(model), expected))


def test_logits_do_not_depend_on_the_layout(make_model):
    model, pixels = make_model("resnet").eval(), torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        before = model(pixels).logits
        assert use_fast_memory_format(model) == "channels_last"
        assert torch.allclose(model(pixels).logits, before, atol=1e-5)


@pytest.mark.parametrize(
    ("layers", "layout"),
    [
        ([nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)], "channels_last"),
        ([nn.Conv2d(3, 4, 8), nn.Conv2d(4, 4, 1)], "contiguous"),  # a patch embedding and a 1 x 1 projection
        ([nn.Linear(4, 4), nn.Linear(4, 4)], "contiguous"),
    ],
    ids=["convolutions", "patches", "linear"],
)
def test_two_kernels_larger_than_1_make_a_model_convolutional(layers, layout):
    assert use_fast_memory_format(nn.Sequential(*layers)) == layout
