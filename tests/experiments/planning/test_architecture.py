import json

import pytest
import torch

from hf_robust_ft.experiments.planning import offline
from hf_robust_ft.experiments.planning.architecture import bare_model
from hf_robust_ft.models import BACKBONES, load_image_classifier


@pytest.mark.parametrize("alias", BACKBONES)
def test_the_papers_backbones_are_known_without_the_network(alias):
    with offline():
        bare = bare_model(alias, 100)
    assert bare.input_size == (224, 224) and bare.model_id == BACKBONES[alias].hub_id
    assert bare.model.config.num_labels == 100 and "no weights read" in bare.origin
    assert all(parameter.device.type == "meta" for parameter in bare.model.parameters())


@pytest.mark.parametrize(
    ("model_id", "image_size", "expected"),
    [
        ("efficientnet_lite0", 32, (32, 32)),
        ("efficientnet_lite2", None, (260, 260)),
        ("timm/vit_tiny_patch16_224.augreg_in21k", 64, (64, 64)),
        ("timm/convnext_tiny.fb_in22k_ft_in1k_384", None, (384, 384)),
        ("open_clip:ViT-B-32/laion2b_s34b_b79k", None, (224, 224)),
    ],
)
def test_ids_that_name_their_architecture(model_id, image_size, expected):
    bare = bare_model(model_id, 10, image_size=image_size)
    assert bare.input_size == expected
    with torch.device("meta"):
        assert bare.model.eval()(pixel_values=torch.zeros(1, 3, *expected)).logits.shape == (1, 10)


@pytest.mark.parametrize("kind", ["vit", "resnet", "timm"])
def test_a_folder_has_the_shapes_that_training_would_load(make_model, processor, tmp_path, kind):
    make_model(kind, num_labels=9).save_pretrained(tmp_path)
    if kind != "timm":
        processor.save_pretrained(tmp_path)
    bare = bare_model(str(tmp_path), 4)
    model, _ = load_image_classifier(str(tmp_path), num_labels=4)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    assert {name: parameter.shape for name, parameter in bare.model.named_parameters()} == shapes
    assert bare.input_size == (16, 16)


def test_a_weight_file_is_of_the_stated_architecture(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.touch()
    bare = bare_model(str(path), 10, architecture="timm/test_resnet")
    assert bare.model_id == "weights.safetensors" and bare.model.config.architecture == "test_resnet"
    with pytest.raises(ValueError, match="--architecture timm/resnet18"):
        bare_model(str(path), 10)


def test_a_cached_configuration_is_enough(make_model, processor, tmp_path, monkeypatch):
    commit = "0" * 40
    snapshot = tmp_path / "models--someone--tiny" / "snapshots" / commit
    make_model("vit").config.save_pretrained(snapshot)
    processor.save_pretrained(snapshot)
    refs = tmp_path / "models--someone--tiny" / "refs"
    refs.mkdir()
    (refs / "main").write_text(commit)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert json.loads((snapshot / "config.json").read_text())["model_type"] == "vit"
    with offline():
        bare = bare_model("someone/tiny", 7)
    assert bare.input_size == (16, 16) and bare.model.config.num_labels == 7 and "configuration" in bare.origin


@pytest.mark.parametrize(
    ("model_id", "message"),
    [
        ("someone/unheard-of", "hf download someone/unheard-of --include '*config.json'"),
        ("swim", "Unknown model 'swim'. Nearest: swin"),
        ("timm/resnet5000", "knows no architecture 'resnet5000'"),
        ("open_clip:ViT-B-31", "knows no model 'ViT-B-31'. Nearest: "),
    ],
)
def test_unknown_models_say_what_to_do(model_id, message):
    with offline(), pytest.raises(ValueError) as error:
        bare_model(model_id, 10)
    assert message in str(error.value)
