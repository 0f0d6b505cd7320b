"""What is hidden trains and is kept in checkpoints, and the model's `state_dict` does not know of it."""

import copy

import pytest
import torch
from conftest import assert_same_weights, weights
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForImageClassification

from hf_robust_ft.training.objectives.hidden import FILE_NAME, hidden_tensors, hide, load_hidden, save_hidden


def with_hidden(model, at=""):
    """The model with a hidden layer of two parameters and a buffer somewhere in it."""
    parent = model.get_submodule(at)
    extra = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    parent.add_module("extra", extra)
    hide(parent, "extra")
    return model


@pytest.mark.parametrize("at", ["", "resnet", "resnet.encoder.stages.0"])
def test_state_dict_is_the_plain_models_and_the_hidden_trains(make_model, at):
    plain, model = make_model("resnet"), with_hidden(make_model("resnet"), at)
    assert_same_weights(model, plain)
    assert list(model.state_dict()._metadata) == list(plain.state_dict()._metadata)
    hidden = {name for name, _ in model.named_parameters()} - {name for name, _ in plain.named_parameters()}
    prefix = f"{at}.extra." if at else "extra."
    assert hidden == {f"{prefix}{name}" for name in ("0.weight", "0.bias", "1.weight", "1.bias")}
    statistics = {f"{prefix}1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert hidden_tensors(model).keys() == hidden | statistics


@pytest.mark.parametrize("at", ["", "resnet.encoder"])
def test_a_plain_state_dict_loads_strictly_and_leaves_the_hidden_alone(make_model, at):
    model, other = with_hidden(make_model("resnet"), at), make_model("resnet", seed=1)
    before = {name: tensor.clone() for name, tensor in hidden_tensors(model).items()}
    model.load_state_dict(other.state_dict(), strict=True)
    assert_same_weights(model, other)
    assert_same_weights(hidden_tensors(model), before)
    lacking = other.state_dict()
    del lacking["classifier.1.bias"]
    with pytest.raises(RuntimeError, match=r"Missing key.*classifier\.1\.bias"):
        model.load_state_dict(lacking, strict=True)


def test_a_copy_hides_its_own(make_model):
    model = with_hidden(make_model("resnet"), "resnet")
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert all(tensor.any() for name, tensor in hidden_tensors(model).items() if name.endswith("0.weight"))
    assert not any(tensor.any() for name, tensor in hidden_tensors(twin).items() if name.endswith("0.weight"))
    assert twin.state_dict().keys() == model.state_dict().keys()


def test_what_is_saved_is_the_plain_model_for_transformers(make_model, tmp_path):
    model = with_hidden(make_model("resnet"), "resnet")
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert_same_weights(loaded, model)


def test_the_hidden_comes_back_from_its_file(make_model, tmp_path):
    model = with_hidden(make_model("resnet"), "resnet")
    save_hidden(model, tmp_path)
    assert load_file(tmp_path / FILE_NAME).keys() == hidden_tensors(model).keys()
    kept = {name: tensor.clone() for name, tensor in hidden_tensors(model).items()}
    own = weights(model)
    for tensor in hidden_tensors(model).values():
        tensor.zero_()
    load_hidden(tmp_path, model)
    assert_same_weights(hidden_tensors(model), kept)
    assert_same_weights(model, own)


def test_a_folder_without_the_hidden_or_with_another_is_refused(make_model, tmp_path):
    plain, model = make_model("resnet"), with_hidden(make_model("resnet"), "resnet")
    save_hidden(plain, tmp_path)
    load_hidden(tmp_path, plain)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"holds no hidden_weights\.safetensors: it was trained without twins_lambda"):
        load_hidden(tmp_path, model)
    save_hidden(with_hidden(make_model("resnet")), tmp_path)
    with pytest.raises(RuntimeError, match=r"does not hold this model's hidden weights: \['extra\."):
        load_hidden(tmp_path, model)
