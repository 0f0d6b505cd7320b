import pytest
import torch
from PIL import Image
from transformers import (
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    SiglipConfig,
    SiglipModel,
    SwinConfig,
    SwinModel,
    ViTImageProcessor,
)

from hf_robust_ft import PixelSpace, load_image_classifier
from hf_robust_ft.attacks import use_fast_memory_format
from hf_robust_ft.models.heads import head_parameter_names

NAMES = ["red", "green", "blue", "yellow"]


@pytest.fixture
def checkpoint(make_model, processor, tmp_path):
    folder = tmp_path / "checkpoint"
    make_model("vit", num_labels=7).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def test_a_local_checkpoint_gets_a_new_head_with_names(checkpoint):
    state = torch.get_rng_state()
    model, processor = load_image_classifier(checkpoint, label_names=NAMES, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.config.id2label == dict(enumerate(NAMES)) and model.config.label2id["blue"] == 2
    again, _ = load_image_classifier(checkpoint, label_names=NAMES, seed=3)
    other, _ = load_image_classifier(checkpoint, label_names=NAMES, seed=4)
    assert torch.equal(model.classifier.weight, again.classifier.weight)
    assert not torch.equal(model.classifier.weight, other.classifier.weight)
    assert PixelSpace.from_processor(processor).mean == (0.5, 0.4, 0.3)


def test_a_head_that_knows_the_classes_in_another_order_is_kept(make_model, processor, tmp_path):
    model = make_model("vit")
    model.config.id2label = dict(enumerate(reversed(NAMES)))
    model.to(torch.bfloat16).save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    loaded, _ = load_image_classifier(str(tmp_path / "checkpoint"), label_names=NAMES)
    assert list(loaded.config.id2label.values()) == NAMES[::-1]
    assert loaded.dtype == torch.float32  # stored in bf16, trained in float32
    assert torch.equal(loaded.classifier.weight, model.classifier.weight.float())


def test_a_checkpoint_keeps_its_head_without_classes(checkpoint):
    model, _ = load_image_classifier(checkpoint)
    assert model.config.num_labels == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_names": NAMES, "num_labels": 3}, "disagrees with the 4 label_names"),
        ({"num_labels": 1}, "at least 2 classes, got 1"),
        ({"image_size": 64, "num_labels": 4}, "takes images of 16 x 16 pixels only, not of image_size=64"),
    ],
)
def test_bad_options_are_refused(checkpoint, options, message):
    with pytest.raises(ValueError, match=message):
        load_image_classifier(checkpoint, **options)


def test_the_embedded_model_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="multiple of 32, got 100"):
        load_image_classifier("efficientnet_lite0", num_labels=4, image_size=100)
    with pytest.raises(ValueError, match=r"takes no \['revision'\]"):
        load_image_classifier("efficientnet_lite0", num_labels=4, revision="main")


def test_the_embedded_weights_are_pretrained():
    """ImageNet's own head is kept, and every tensor is the package's."""
    model, _ = load_image_classifier("efficientnet_lite0")
    assert model.config.num_labels == 1000
    fresh = type(model)(model.config).state_dict()
    floats = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    assert all(not torch.equal(tensor, fresh[name]) for name, tensor in floats.items())


def test_only_convolutional_models_change_their_layout(make_model):
    assert use_fast_memory_format(make_model("vit")) == "contiguous"
    model = make_model("resnet")
    assert use_fast_memory_format(model) == "channels_last"
    kernels = [parameter for parameter in model.parameters() if parameter.ndim == 4 and parameter.shape[1] > 1]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 32,
    "patch_size": 8,
}
PRETRAINED = {
    "dinov2": lambda: Dinov2Model(Dinov2Config(**SMALL)),
    "siglip": lambda: SiglipModel(SiglipConfig(vision_config=SMALL)),
    "swin": lambda: SwinModel(SwinConfig(image_size=32, embed_dim=8, depths=[1], num_heads=[1], window_size=4)),
    "convnext": lambda: ConvNextModel(ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=[4, 4, 8, 8])),
}


@pytest.mark.parametrize("kind", PRETRAINED)
def test_pretrained_transformers_models_get_a_head_on_their_own_weights(kind, tmp_path):
    torch.manual_seed(0)
    pretrained = PRETRAINED[kind]()
    pretrained.save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    model, processor = load_image_classifier(str(tmp_path), label_names=NAMES)
    assert head_parameter_names(model) == {"classifier.weight", "classifier.bias"}
    saved = {tensor.sum().item() for tensor in pretrained.state_dict().values()}
    body = [tensor for name, tensor in model.state_dict().items() if not name.startswith("classifier")]
    assert body and all(tensor.sum().item() in saved for tensor in body)
    pixel_values = processor(Image.new("RGB", (40, 40)), return_tensors="pt")["pixel_values"]
    assert model(pixel_values).logits.shape == (1, 4)


def test_a_folder_without_a_checkpoint_is_called_so(tmp_path):
    with pytest.raises(OSError, match=r"is no checkpoint: it has no config.json. Give the folder that training wrote"):
        load_image_classifier(str(tmp_path))
