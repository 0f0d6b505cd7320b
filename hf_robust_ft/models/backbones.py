"""The pretrained backbones that the paper compares, under the short names its readers use."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

_MANY = 20  # names that no error message lists in full


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


def nearest_names(name: str, known: Iterable[str]) -> str:
    """Those of the `known` names most like `name`, whatever the case, for an error message.

    Where none is alike, all of a few, or the three least unlike of many.

    >>> nearest_names("clipvit", BACKBONES)
    'clip_vit, vit'
    >>> nearest_names("vit-b-32", ["RN50", "ViT-B-32"])
    'ViT-B-32'
    """
    known = sorted(known)
    lowered: dict[str, list[str]] = {}
    for entry in known:
        lowered.setdefault(entry.lower(), []).append(entry)
    close = difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.55)
    if not close and len(known) > _MANY:
        close = difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.0)
    return ", ".join([entry for match in close for entry in lowered[match]] or known)
