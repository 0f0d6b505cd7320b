import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification, ConvNextImageProcessor, ViTImageProcessor

from hf_robust_ft import load_image_classifier
from hf_robust_ft.models.image_size import input_size
from hf_robust_ft.models.timm_classifier import build_timm_classifier

LABELS = {"num_labels": 3}
SWIN = {"img_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]}
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
SMALL_INPUT = {"input_size": (3, 32, 32)}


@pytest.fixture
def save(tmp_path):
    def make(architecture, model_args):
        model, _ = build_timm_classifier(architecture, LABELS, model_args=model_args, pretrained_cfg=SMALL_INPUT)
        model.save_pretrained(tmp_path)
        return str(tmp_path), model.eval()

    return make


@pytest.mark.parametrize(
    ("architecture", "model_args", "size"),
    [
        ("vit_base_patch16_224", VIT, 48),
        ("swin_base_patch4_window7_224", SWIN, 48),
        ("swin_base_patch4_window7_224", SWIN, 16),
        ("test_resnet", None, 50),
    ],
)
def test_timm_models_change_their_size_and_reload(save, tmp_path, architecture, model_args, size):
    folder, original = save(architecture, model_args)
    model, processor = load_image_classifier(folder, image_size=size)
    assert input_size(processor) == (size, size)
    pixel_values = torch.randn(1, 3, size, size)
    model.save_pretrained(tmp_path / "resized")
    reloaded = AutoModelForImageClassification.from_pretrained(tmp_path / "resized").eval()
    assert torch.equal(reloaded(pixel_values).logits, model.eval()(pixel_values).logits)
    assert input_size(AutoImageProcessor.from_pretrained(tmp_path / "resized")) == (size, size)
    # Only what depends on the size differs: everything else is the checkpoint's, nothing drawn anew.
    own = original.state_dict()
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, own[name])]
    assert all("pos_embed" in name or "relative_position" in name for name in changed)


def test_resampled_position_embeddings_of_a_constant_stay_constant(save, tmp_path):
    folder, model = save("vit_base_patch16_224", VIT)
    with torch.no_grad():
        model.timm_model.pos_embed.fill_(0.25)
    model.save_pretrained(folder)
    resized, _ = load_image_classifier(folder, image_size=64)
    assert resized.timm_model.pos_embed.shape[1] == 65
    assert torch.allclose(resized.timm_model.pos_embed, torch.tensor(0.25), atol=1e-6)


@pytest.mark.parametrize(
    ("architecture", "model_args", "size", "message"),
    [
        ("vit_base_patch16_224", VIT, 4, "at least one patch, 8; got 4"),
        ("vit_base_patch16_224", VIT, 36, "a multiple of the patch size, 8; got 36"),
        ("swin_base_patch4_window7_224", SWIN, 30, "a multiple of the patch size, 4; got 30"),
        ("test_resnet", None, 16, "at least the network's stride, 32; got 16"),
        ("test_resnet", None, 0, "image_size is a number of pixels, got 0"),
    ],
)
def test_sizes_the_network_cannot_take_are_refused(save, architecture, model_args, size, message):
    folder, _ = save(architecture, model_args)
    with pytest.raises(ValueError, match=message):
        load_image_classifier(folder, image_size=size)


def test_convolutional_transformers_models_change_their_processor(make_model, tmp_path):
    make_model("resnet").save_pretrained(tmp_path)
    ConvNextImageProcessor(size={"shortest_edge": 224}, crop_pct=0.9).save_pretrained(tmp_path)
    _, processor = load_image_classifier(str(tmp_path), image_size=64)
    from PIL import Image

    assert processor(Image.new("RGB", (99, 70)), return_tensors="pt")["pixel_values"].shape == (1, 3, 64, 64)
    with pytest.raises(ValueError, match="at least its stride, 32; got 8"):
        load_image_classifier(str(tmp_path), image_size=8)


@pytest.mark.parametrize(
    ("size", "message"), [(4, "at least one patch of .*, 8; got 4"), (24, "makes images of 24 x 24 .* takes 16 x 16")]
)
def test_a_processor_that_does_not_fit_its_model_is_refused_at_loading(make_model, tmp_path, size, message):
    make_model("vit").save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": size, "width": size}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_image_classifier(str(tmp_path))
