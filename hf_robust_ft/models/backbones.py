"""The pretrained backbones that the paper compares, under the short names its readers use."""

from dataclasses import dataclass

from hf_robust_ft.models.efficientnet_lite import EMBEDDED_MODELS
from hf_robust_ft.provenance.choices import nearest_names
from hf_robust_ft.provenance.source_names import nothing_here


@dataclass(frozen=True)
class Backbone:
    """One row of the paper's checkpoint list.

    Args:
        alias: what `load_image_classifier` and `--model` take.
        hub_id: the checkpoint on the Hub.
        paper_name: its name in the paper's tables.
        licence: of the weights, as the checkpoint's publisher states it.
        image_size: input side in pixels in the paper's experiments; the checkpoint's own may differ (`clip_cnx`: 256).
        text_tower_id: where its text tower is, for a zero-shot head; None for a backbone without one.
        architecture: of a weight file, where `hub_id` does not name it.
    """

    alias: str
    hub_id: str
    paper_name: str
    licence: str
    image_size: int = 224
    text_tower_id: str | None = None
    architecture: str | None = None


BACKBONES = {
    backbone.alias: backbone
    for backbone in (
        Backbone("vit", "timm/vit_base_patch16_224.augreg_in1k", "ViT", "apache-2.0"),
        Backbone("swin", "timm/swin_base_patch4_window7_224.ms_in22k_ft_in1k", "SWIN", "mit"),
        Backbone("cnx", "timm/convnext_base.fb_in22k_ft_in1k", "CNX", "apache-2.0"),
        Backbone("r50", "timm/resnet50.a1_in1k", "R50", "apache-2.0"),
        Backbone(
            "clip_vit",
            "timm/vit_base_patch16_clip_224.laion2b",
            "ClipViT",
            "apache-2.0",
            text_tower_id="open_clip:ViT-B-16/laion2b_s34b_b88k",
        ),
        Backbone(
            "clip_cnx",
            "laion/CLIP-convnext_base_w-laion2B-s13B-b82K",
            "ClipCNX",
            "mit",
            text_tower_id="laion/CLIP-convnext_base_w-laion2B-s13B-b82K",
            architecture="open_clip:convnext_base_w",
        ),
    )
}


def unknown_model(name: str) -> ValueError:
    """What to raise for a short name that is none of ours."""
    near = nearest_names(name, [*BACKBONES, *EMBEDDED_MODELS])
    return ValueError(
        f"{nothing_here(name)} Unknown model {name!r}. Nearest: {near}. Or give a Hub id (timm/resnet18.a1_in1k), "
        "open_clip:NAME, a checkpoint folder or a weight file."
    )
