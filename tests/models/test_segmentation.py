import json

import pytest
import torch
from PIL import Image as PILImage
from transformers import (
    AutoModelForSemanticSegmentation,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    SegformerModel,
    ViTConfig,
    ViTForImageClassification,
    pipeline,
)

from hf_robust_ft.models.segmentation import load_segmentation_model, segments
from hf_robust_ft.provenance.class_names import class_names

TINY = {
    "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 1, 1],
    "decoder_hidden_size": 8, "sr_ratios": [1, 1, 1, 1],
}  # fmt: skip
NAMES = ["road", "car", "sky"]


@pytest.fixture
def checkpoint(tmp_path):
    """A tiny SegFormer with unnamed classes."""
    torch.manual_seed(0)
    SegformerForSemanticSegmentation(SegformerConfig(**TINY, num_labels=5)).save_pretrained(tmp_path)
    SegformerImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.fixture(scope="module")
def embedded():
    return load_segmentation_model("efficientnet_lite0", label_names=NAMES, image_size=64)


def test_a_checkpoint_gets_a_new_head_with_names_on_its_own_weights(checkpoint):
    model, processor = load_segmentation_model(checkpoint, label_names=NAMES)
    before = AutoModelForSemanticSegmentation.from_pretrained(checkpoint).state_dict()
    new = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert new == {"decode_head.classifier.weight", "decode_head.classifier.bias"}
    assert class_names(model.config) == NAMES and dict(processor.size) == {"height": 32, "width": 32}


def test_a_checkpoint_keeps_its_head_without_classes_and_new_draws_another(checkpoint):
    kept, again = (load_segmentation_model(checkpoint)[0].state_dict() for _ in range(2))
    drawn = load_segmentation_model(checkpoint, num_labels=5, head="new")[0].state_dict()
    assert all(torch.equal(kept[name], again[name]) for name in kept)
    assert not torch.equal(kept["decode_head.classifier.weight"], drawn["decode_head.classifier.weight"])


def test_a_pretrained_encoder_gets_a_whole_decoder(tmp_path):
    SegformerModel(SegformerConfig(**TINY)).save_pretrained(tmp_path)
    SegformerImageProcessor().save_pretrained(tmp_path)
    model, processor = load_segmentation_model(str(tmp_path), label_names=NAMES, image_size=64)
    assert model(torch.zeros(1, 3, 64, 64)).logits.shape[1] == 3 and dict(processor.size)["height"] == 64


def test_the_embedded_model_has_imagenet_features_and_a_head_that_keeps_the_scale(embedded):
    model, processor = embedded
    image = PILImage.effect_noise((64, 64), 60).convert("RGB")
    inputs = processor(image, return_tensors="pt")
    features = {}
    for name, module in model.decode_head.named_modules():
        if name in ("fpn_bottleneck", "lateral_convs.0", "fpn_convs.0"):
            module.register_forward_hook(lambda module, args, found, name=name: features.update({name: found}))
    with torch.no_grad():
        logits = model(**inputs).logits
    assert logits.shape == (1, 3, 64, 64)
    assert all(0.05 < value.std() < 50 for value in features.values())
    assert model.backbone._backbone.conv_stem.weight.std() > 0.1  # not a random draw


def test_the_embedded_model_comes_back_by_transformers_alone(embedded, tmp_path):
    model, _ = embedded
    for each in embedded:
        each.save_pretrained(tmp_path)
    assert segments(str(tmp_path))
    again = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())
    found = pipeline("image-segmentation", str(tmp_path))(PILImage.new("RGB", (40, 30)))
    assert found and {part["label"] for part in found} <= set(NAMES) and found[0]["mask"].size == (40, 30)


@pytest.mark.parametrize(
    "model_id, options, message",
    [
        ("efficientnet_lite0", {}, "has no segmentation head yet"),
        ("efficientnet_lite0", {"num_labels": 3, "head": "keep"}, "gets a new head"),
        ("swin", {"num_labels": 3}, "swin is a classifier's backbone"),
        ("efficientnet_lite0", {"num_labels": 3, "image_size": 16}, "at least 32 pixels"),
        ("efficientnet_lite0", {"num_labels": 3, "head": "zero_shot"}, "head"),
        ("efficientnet_lite0", {"num_labels": 1}, "at least 2 classes"),
    ],
)
def test_bad_options_are_refused(model_id, options, message):
    with pytest.raises(ValueError, match=message):
        load_segmentation_model(model_id, **options)


def test_a_classifier_is_no_segmentation_model(tmp_path):
    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=32)
    ViTForImageClassification(config).save_pretrained(tmp_path)
    assert not segments(str(tmp_path)) and not segments(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"\(vit\) is no model for semantic segmentation"):
        load_segmentation_model(str(tmp_path), num_labels=3)


def test_a_head_fine_tuned_to_other_classes_is_not_replaced_unasked(checkpoint, tmp_path):
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"id2label": dict(enumerate("abcde")), "label2id": {name: i for i, name in enumerate("abcde")}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="was fine-tuned to 5 classes"):
        load_segmentation_model(checkpoint, label_names=NAMES)


def test_an_incomplete_checkpoint_is_refused(checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors.pop(next(name for name in tensors if "encoder" in name))
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks tensors of SegformerForSemanticSegmentation"):
        load_segmentation_model(checkpoint)
