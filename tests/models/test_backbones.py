import pytest
import timm

from hf_robust_ft.models import BACKBONES, load_image_classifier


def test_the_six_are_the_papers():
    assert {entry.paper_name for entry in BACKBONES.values()} == {"ViT", "SWIN", "CNX", "R50", "ClipViT", "ClipCNX"}
    assert all(alias == entry.alias and entry.image_size == 224 for alias, entry in BACKBONES.items())


@pytest.mark.parametrize("alias", ["vit", "swin", "cnx", "r50", "clip_vit"])
def test_timm_knows_each_checkpoint_with_its_licence(alias):
    backbone = BACKBONES[alias]
    stated = timm.get_pretrained_cfg(backbone.hub_id.removeprefix("timm/"), allow_unregistered=False)
    assert stated.hf_hub_id == backbone.hub_id and stated.license == backbone.licence


def test_open_clip_knows_the_text_towers():
    import open_clip

    name, tag = BACKBONES["clip_vit"].text_tower_id.removeprefix("open_clip:").split("/")
    assert tag in open_clip.list_pretrained_tags_by_model(name)
    listed = open_clip.get_pretrained_cfg("convnext_base_w", "laion2b_s13b_b82k")["hf_hub"]
    assert listed.rstrip("/") == BACKBONES["clip_cnx"].hub_id == BACKBONES["clip_cnx"].text_tower_id


@pytest.mark.parametrize(
    ("wrong", "offered"),
    [("swin_base", "swin"), ("R50", "r50"), ("clipcnx", "clip_cnx"), ("efficientnet-lite2", "efficientnet_lite2")],
)
def test_an_unknown_name_offers_the_nearest(wrong, offered):
    with pytest.raises(ValueError, match=f"Unknown model '{wrong}'. Nearest: .*{offered}"):
        load_image_classifier(wrong, num_labels=4)


def test_zero_shot_of_a_backbone_without_text_tower_is_refused():
    with pytest.raises(ValueError, match=r"text tower, which r50 has not. Of the six: clip_vit, clip_cnx"):
        load_image_classifier("r50", label_names=["cat", "dog"], head="zero_shot")


def test_the_nearest_are_found_whatever_the_case():
    with pytest.raises(ValueError, match=r"Nearest: .*ViT-B-32"):
        load_image_classifier("open_clip:vit-b-32", num_labels=4)


def test_a_folder_called_like_a_known_model_is_said_to_be_left_aside(
    make_model, processor, tmp_path, monkeypatch, caplog
):
    for name in ("efficientnet_lite0", "swin"):
        make_model().save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    model, _ = load_image_classifier("efficientnet_lite0", num_labels=4, image_size=32)
    assert "timm_model" in dict(model.named_children())
    assert "efficientnet_lite0 means the embedded model here, not what lies in this folder" in caplog.text
    with pytest.raises(OSError, match="timm/swin_base"):
        load_image_classifier("swin", num_labels=4)
    assert "that is ./swin" in caplog.text
    model, _ = load_image_classifier("./swin", num_labels=4)
    assert type(model).__name__ == "ViTForImageClassification"
