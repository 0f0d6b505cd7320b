import logging

import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, TimmWrapperForImageClassification

from hf_robust_ft import load_image_classifier
from hf_robust_ft.models.heads import class_labels, head_parameter_names, last_linear_layers, replaces_head

NAMES = ["red", "green", "blue", "yellow"]
OTHERS = ["cat", "dog", "hen", "cow"]


@pytest.fixture
def fine_tuned(make_model, processor, tmp_path):
    """A checkpoint fine-tuned to the four named colours, of either kind."""

    def make(kind="vit", names=NAMES):
        model = make_model(kind, num_labels=len(names))
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: index for index, name in enumerate(names)}
        model.save_pretrained(tmp_path / kind)
        if kind != "timm":
            processor.save_pretrained(tmp_path / kind)
        return str(tmp_path / kind), model

    return make


def head_weight(model):
    (module,) = last_linear_layers(model).values()
    return module.weight


@pytest.mark.parametrize("kind", ["vit", "timm"])
def test_auto_refuses_to_replace_a_fine_tuned_head(fine_tuned, kind):
    folder, _ = fine_tuned(kind)
    for options in ({"label_names": OTHERS}, {"num_labels": 3}, {"label_names": OTHERS[:3]}):
        with pytest.raises(ValueError, match=r"fine-tuned to 4 classes \(red, green, blue, yellow\).*head='new'"):
            load_image_classifier(folder, **options)


@pytest.mark.parametrize("kind", ["vit", "timm"])
@pytest.mark.parametrize("names", [OTHERS, OTHERS[:3]])
def test_new_replaces_the_head_only_and_says_so(fine_tuned, kind, names, caplog, tmp_path):
    folder, original = fine_tuned(kind)
    with caplog.at_level(logging.WARNING, "hf_robust_ft"):
        model, _ = load_image_classifier(folder, label_names=names, head="new", seed=1)
    assert f"(4 classes) is replaced by a new one for {len(names)}" in caplog.text
    ends = head_parameter_names(model)
    for name, tensor in model.named_parameters():
        same = tensor.shape == original.get_parameter(name).shape and torch.equal(tensor, original.get_parameter(name))
        assert same == (name not in ends) or (name in ends and name.endswith("bias")), name
    again, _ = load_image_classifier(folder, label_names=names, head="new", seed=1)
    other, _ = load_image_classifier(folder, label_names=names, head="new", seed=2)
    assert torch.equal(head_weight(model), head_weight(again))
    assert not torch.equal(head_weight(model), head_weight(other))
    # The old names must not come back: TimmWrapper's config would save its stale label_names.
    model.save_pretrained(tmp_path / "saved")
    reloaded = type(model).from_pretrained(tmp_path / "saved")
    assert list(reloaded.config.id2label.values()) == names


def test_keep_keeps_weights_and_takes_new_names(fine_tuned):
    folder, original = fine_tuned()
    model, _ = load_image_classifier(folder, label_names=OTHERS, head="keep")
    assert torch.equal(head_weight(model), original.classifier.weight)
    assert list(model.config.id2label.values()) == OTHERS
    with pytest.raises(ValueError, match="has 4 classes and 3 were given"):
        load_image_classifier(folder, num_labels=3, head="keep")


def test_unnamed_heads_of_the_same_size_are_named_and_kept(make_model, processor, tmp_path):
    original = make_model()
    original.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    model, _ = load_image_classifier(str(tmp_path), label_names=NAMES)
    assert torch.equal(head_weight(model), original.classifier.weight)
    assert list(model.config.id2label.values()) == NAMES


@pytest.fixture
def headless(tmp_path):
    torch.manual_seed(0)
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    vision = {**text, "image_size": 16, "patch_size": 8}
    config = CLIPConfig(text_config={**text, "vocab_size": 9, "eos_token_id": 2}, vision_config=vision)
    CLIPModel(config).save_pretrained(tmp_path)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    return str(tmp_path)


def test_a_checkpoint_without_a_head_is_never_given_one_silently(headless, caplog):
    for options in ({}, {"num_labels": 2, "head": "keep"}):
        with pytest.raises(ValueError, match="holds no classification head: give label_names or num_labels"):
            load_image_classifier(headless, **options)
    with caplog.at_level(logging.WARNING, "hf_robust_ft"):
        model, _ = load_image_classifier(headless, label_names=NAMES)
    assert "has no classification head: a new one for 4 classes" in caplog.text
    assert list(model.config.id2label.values()) == NAMES


def test_a_backbone_tensor_of_another_shape_is_refused(make_model, processor, tmp_path):
    """`ignore_mismatched_sizes` would draw it at random along with the head."""
    model = make_model(num_labels=7)
    model.save_pretrained(tmp_path)
    model.config.patch_size = 4
    model.config.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"in other shapes: .*patch_embeddings"):
        load_image_classifier(str(tmp_path), label_names=NAMES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("new", NAMES, {}), "needs the classes"),
        (("auto", NAMES, {"num_labels": 5}), "others|classes were given"),
    ],
)
def test_what_replaces_head_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        replaces_head(*arguments, "x")


def test_pretraining_heads_give_way():
    imagenet = [f"synset {index}" for index in range(1000)]
    assert replaces_head("auto", imagenet, class_labels(NAMES, None), "x")
    assert not replaces_head("auto", imagenet, class_labels(None, 1000), "x")
    assert not replaces_head("auto", imagenet, {}, "x")


def test_bad_arguments(fine_tuned):
    with pytest.raises(ValueError, match="given more than once: cat"):
        class_labels(["cat", "dog", "cat"], None)
    with pytest.raises(ValueError, match=r"Unknown head 'fresh'. Valid: auto, new, keep, zero_shot"):
        load_image_classifier("vit", num_labels=4, head="fresh")
    with pytest.raises(ValueError, match="prompts are for head='zero_shot'"):
        load_image_classifier("vit", num_labels=4, prompts=["a drawing of a {}."])
    folder, _ = fine_tuned()
    with pytest.raises(ValueError, match="architecture is for weight files"):
        load_image_classifier(folder, architecture="timm/resnet18")


def test_heads_are_found_in_every_kind(make_model):
    assert head_parameter_names(make_model("vit")) == {"classifier.weight", "classifier.bias"}
    assert head_parameter_names(make_model("resnet")) == {"classifier.1.weight", "classifier.1.bias"}
    timm_model = make_model("timm")
    assert isinstance(timm_model, TimmWrapperForImageClassification)
    assert head_parameter_names(timm_model) == {"timm_model.fc.weight", "timm_model.fc.bias"}
