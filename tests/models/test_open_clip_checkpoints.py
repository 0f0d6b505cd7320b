import open_clip
import pytest
import torch
from PIL import Image

from hf_robust_ft import load_image_classifier
from hf_robust_ft.benchmarks.backbone_round_trip import MINIATURE_CLIP, write_open_clip
from hf_robust_ft.models import open_clip_checkpoints
from hf_robust_ft.models.clip_twins import TimmTwin, open_clip_translations, open_clip_twin, verified_twin
from hf_robust_ft.models.open_clip_checkpoints import load_open_clip

NAMES = ["cat", "dog", "red rose"]
PROMPTS = ["a photo of a {}.", "a drawing of a {}."]
TEXT = MINIATURE_CLIP["text_cfg"]
VIT = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32}
TIMM_VIT = {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "none", "image_size": 160}
TOWERS = {
    "convnext": (MINIATURE_CLIP, "test_convnext"),
    "convnext_mlp": (
        {**MINIATURE_CLIP, "vision_cfg": {**MINIATURE_CLIP["vision_cfg"], "timm_proj": "mlp"}},
        "test_convnext",
    ),
    "vit": ({"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT}, "vit_base_patch16_clip_224"),
    "vit_quickgelu": (
        {"embed_dim": 24, "quick_gelu": True, "vision_cfg": {**VIT, "mlp_ratio": 2.0}, "text_cfg": TEXT},
        "vit_base_patch16_clip_quickgelu_224",
    ),
    "unprojected": (
        {"embed_dim": 64, "init_logit_bias": -2.0, "custom_text": True, "vision_cfg": TIMM_VIT, "text_cfg": TEXT},
        "test_vit",
    ),
    "resnet": ({"embed_dim": 24, "vision_cfg": {**VIT, "layers": [1, 1, 1, 1], "width": 16}, "text_cfg": TEXT}, None),
    "attentional": (
        {"embed_dim": 24, "vision_cfg": {**VIT, "attentional_pool": True, "attn_pooler_heads": 2}, "text_cfg": TEXT},
        None,
    ),
}


@pytest.fixture(params=TOWERS)
def tower(request, tmp_path):
    torch.manual_seed(0)
    config, architecture = TOWERS[request.param]
    write_open_clip(tmp_path, config)
    return str(tmp_path), architecture


def test_zero_shot_heads_predict_as_open_clip_itself(tower):
    """Exact up to one factor per image for a folded head; exactly for a tower of our own class."""
    folder, architecture = tower
    model, processor = load_image_classifier(folder, label_names=NAMES, head="zero_shot", prompts=PROMPTS)
    assert getattr(model.config, "architecture", None) == architecture
    image = Image.effect_noise((90, 90), 80).convert("RGB")
    pixel_values = processor(image, return_tensors="pt")["pixel_values"]
    clip = load_open_clip(folder, {}).clip
    text = open_clip.build_zero_shot_classifier(clip, open_clip.get_tokenizer(f"local-dir:{folder}"), NAMES, PROMPTS)
    bias = 0.0 if clip.logit_bias is None else clip.logit_bias
    with torch.no_grad():
        expected = clip.logit_scale.exp() * clip.encode_image(pixel_values, normalize=True) @ text
        folded = model(pixel_values).logits - bias
    factor = folded.norm() / expected.norm()
    assert torch.allclose(folded, factor * expected, atol=1e-4)
    assert factor > 0.2 and (architecture is not None or abs(factor - 1) < 1e-5)
    assert folded.argmax() == expected.argmax()


def test_a_new_head_stands_on_the_towers_own_weights(tower):
    folder, _ = tower
    model, _ = load_image_classifier(folder, label_names=NAMES, seed=5)
    again, _ = load_image_classifier(folder, label_names=NAMES, seed=5)
    assert list(model.config.id2label.values()) == NAMES
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    saved = [tensor for name, tensor in load_open_clip(folder, {}).clip.visual.state_dict().items()]
    shapes = {tuple(tensor.shape) for tensor in saved}
    kept = [tensor for tensor in model.state_dict().values() if tuple(tensor.shape) in shapes and tensor.numel() > 64]
    assert kept and all(any(a.shape == b.shape and torch.equal(a, b) for b in saved) for a in kept)


@pytest.mark.parametrize("options", [{}, {"label_names": NAMES, "head": "keep"}])
def test_there_is_no_head_to_keep(tmp_path, options):
    write_open_clip(tmp_path, MINIATURE_CLIP)
    with pytest.raises(ValueError, match="holds no classification head"):
        load_image_classifier(str(tmp_path), **options)


def test_a_tower_that_computes_something_else_is_no_twin(caplog):
    """Same tensors, another activation: only the comparison of features can tell."""
    config = TOWERS["vit_quickgelu"][0]
    torch.manual_seed(0)
    visual = open_clip.CLIP(**config).visual.eval()
    twin = open_clip_twin(config)
    wrong = TimmTwin("vit_base_patch16_clip_224", twin.model_args, twin.embed_dim)
    images = torch.randn(2, 3, 32, 32)
    assert verified_twin(wrong, open_clip_translations(wrong, visual), visual, images, "x") is None
    assert "features differ by" in caplog.text
    assert verified_twin(twin, open_clip_translations(twin, visual), visual, images, "x") is not None


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("ViT-B-32", "vit_base_patch32_clip_224"),
        ("ViT-L-14-336-quickgelu", "vit_large_patch14_clip_quickgelu_336"),
        ("ViT-H-14", "vit_huge_patch14_clip_224"),
        ("RN50x4", "resnet50x4_clip"),
        ("convnext_base_w", "convnext_base"),
        ("ViT-B-16-SigLIP", "vit_base_patch16_siglip_224"),
    ],
)
def test_real_architectures_have_their_timm_namesake(name, architecture):
    assert open_clip_twin(open_clip.get_model_config(name)).architecture == architecture


@pytest.mark.parametrize(
    ("model_id", "options", "message"),
    [
        ("open_clip:ViT-B-31", {}, r"knows no model 'ViT-B-31'. Nearest: .*ViT-B-32"),
        ("open_clip:ViT-B-32/laion2b", {}, r"no weights 'laion2b' for ViT-B-32. Nearest: .*laion2b_"),
        ("open_clip:ViT-B-32/openai", {"revision": "main"}, r"takes no \['revision'\]"),
        ("open_clip:ViT-B-32", {"trust_remote_code": True}, r"takes no \['trust_remote_code'\]"),
    ],
)
def test_what_open_clip_does_not_know_is_refused(model_id, options, message):
    with pytest.raises(ValueError, match=message):
        load_image_classifier(model_id, num_labels=4, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_labels": 3}, "needs label_names"),
        ({"label_names": NAMES, "prompts": ["a photo"]}, "templates with one {} for the class name"),
        ({"label_names": NAMES, "prompts": []}, "templates with one {} for the class name"),
        ({"label_names": NAMES, "prompts": "a {}"}, "templates with one {} for the class name"),
    ],
)
def test_bad_prompts_are_refused_before_anything_is_loaded(options, message):
    with pytest.raises(ValueError, match=message):
        load_image_classifier("clip_cnx", head="zero_shot", **options)


def test_local_weights_of_an_open_clip_model(tmp_path, monkeypatch):
    torch.manual_seed(0)
    write_open_clip(tmp_path / "models", TOWERS["vit"][0])
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {"tiny": TOWERS["vit"][0]})
    path = tmp_path / "models" / "open_clip_model.safetensors"
    model, processor = load_image_classifier(
        str(path), architecture="open_clip:tiny", label_names=NAMES, head="zero_shot", image_size=48
    )
    assert model.config.architecture == "vit_base_patch16_clip_224"
    assert processor.data_config["input_size"] == (3, 48, 48)
    assert model(torch.zeros(1, 3, 48, 48)).logits.shape == (1, 3)


def test_named_weights_are_compared_with_the_hubs_checksums(tmp_path, monkeypatch):
    """open_clip downloads them itself, and compares nothing."""
    write_open_clip(tmp_path, TOWERS["vit"][0])
    clip = load_open_clip(str(tmp_path), {}).clip
    monkeypatch.setattr(open_clip, "create_model", lambda *args, **options: clip)
    compared = []
    monkeypatch.setattr(open_clip_checkpoints, "verify_download", lambda *args, **options: compared.append(args))
    load_open_clip("open_clip:ViT-B-32/laion2b_s34b_b79k", {})
    load_open_clip("open_clip:ViT-B-16/openai", {})
    assert compared[0] == ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K",) and len(compared[1][0].split("/")) == 2


def test_a_weight_file_of_another_architecture_is_named(tmp_path):
    (tmp_path / "w.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"w\.pt does not fit open_clip:RN50"):
        load_image_classifier(str(tmp_path / "w.pt"), architecture="open_clip:RN50", num_labels=3)
