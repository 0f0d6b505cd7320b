import pytest
import timm
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

from hf_robust_ft import PixelSpace, load_image_classifier
from hf_robust_ft.models.timm_classifier import build_timm_classifier, timm_architecture

NAMES = ["cat", "dog", "hen"]
LABELS = {"num_labels": 3, "id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}


def test_a_new_model_has_timms_own_initialisation_and_reloads_with_its_processor(tmp_path):
    torch.manual_seed(0)
    model, processor = build_timm_classifier("timm/test_resnet", LABELS, image_size=64)
    torch.manual_seed(0)
    own = timm.create_model("test_resnet", num_classes=3).state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.timm_model.state_dict().items())
    model.save_pretrained(tmp_path)
    assert PixelSpace.from_processor(AutoImageProcessor.from_pretrained(tmp_path)) == PixelSpace.from_processor(
        processor
    )
    assert AutoModelForImageClassification.from_pretrained(tmp_path).config.id2label == dict(enumerate(NAMES))


def test_what_timm_itself_exports_loads(tmp_path):
    """Its config has no model_type, and names num_classes among model_args, which transformers alone fails on."""
    inner = timm.create_model("test_resnet", num_classes=7)
    timm.models.save_for_hf(inner, tmp_path, safe_serialization=True)
    model, _ = load_image_classifier(str(tmp_path))
    assert model.config.num_labels == 7
    pixel_values = torch.randn(1, 3, 64, 64)
    assert torch.allclose(model.eval()(pixel_values).logits, inner.eval()(pixel_values), atol=1e-6)
    model, _ = load_image_classifier(str(tmp_path), label_names=NAMES)
    model.save_pretrained(tmp_path / "again")
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "again").config.num_labels == 3


def test_tags_are_left_aside_and_unknown_names_answered():
    assert timm_architecture("timm/resnet18.a1_in1k") == "resnet18"
    with pytest.raises(ValueError, match=r"knows no architecture 'resnet19'. Nearest: .*resnet18"):
        timm_architecture("timm/resnet19")


@pytest.mark.parametrize(
    ("name", "mean", "size"),
    [
        ("timm/vit_tiny_patch16_224", 0.5, 224),
        ("vit_small_patch16_224.augreg_in1k", 0.5, 224),
        ("timm/vit_small_patch16_224.dino", 0.485, 224),
        ("timm/convnext_tiny.fb_in22k_ft_in1k_384", 0.485, 384),
        ("timm/vit_small_patch14_dinov2.lvd142m", 0.485, 518),
    ],
)
def test_a_tag_tells_the_input(name, mean, size):
    with torch.device("meta"):
        _, processor = build_timm_classifier(name, LABELS)
    assert processor.data_config["mean"][0] == mean and processor.data_config["input_size"] == (3, size, size)


def test_an_unknown_tag_is_answered():
    with pytest.raises(ValueError, match=r"no tag 'dinno' of vit_small_patch16_224. Nearest: dino"):
        build_timm_classifier("timm/vit_small_patch16_224.dinno", LABELS)
