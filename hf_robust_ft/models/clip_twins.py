"""The timm architecture that computes the same as a CLIP image tower, with the tower's weights in it."""

import logging
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from hf_robust_ft.models.timm_classifier import checkpoint_filter

TOLERANCE = 1e-4
_VIT_SIZES = {(768, 12, 12): "base", (1024, 24, 16): "large", (1280, 32, 16): "huge"}
_RESNETS = {
    ((3, 4, 6, 3), 64): "resnet50_clip",
    ((3, 4, 23, 3), 64): "resnet101_clip",
    ((4, 6, 10, 6), 80): "resnet50x4_clip",
    ((6, 8, 18, 8), 96): "resnet50x16_clip",
    ((3, 15, 36, 10), 128): "resnet50x64_clip",
}
# open_clip options whose towers timm's plain ViT does not compute.
_UNUSUAL_VIT = (
    "attentional_pool",
    "no_ln_pre",
    "final_ln_after_pool",
    "block_type",
    "qk_norm",
    "scaled_cosine_attn",
    "scale_heads",
    "scale_attn_inner",
    "scale_attn",
    "scale_fc",
    "act_kwargs",
    "norm_kwargs",
)

logger = logging.getLogger(__name__)


class TimmTwin(NamedTuple):
    """How timm builds the tower.

    Args:
        architecture: timm's name.
        model_args: arguments of `timm.create_model` beside the name and `num_classes`.
        embed_dim: outputs of the tower's final projection, timm's classifier; 0 for a tower that ends in its features.
    """

    architecture: str
    model_args: dict[str, Any]
    embed_dim: int

    def build(self) -> nn.Module:
        """The timm model with random weights, in eval mode."""
        return timm.create_model(self.architecture, num_classes=self.embed_dim, **self.model_args).eval()


def vit_twin(
    *, width: int, layers: int, heads: int, patch_size: int, image_size: int, embed_dim: int, quick_gelu: bool, **more
) -> TimmTwin:
    """CLIP's vision transformer (class token, LayerNorm before and after) in timm's terms."""
    gelu = "_quickgelu" if quick_gelu else ""
    size = _VIT_SIZES.get((width, layers, heads))
    name = f"vit_{size}_patch{patch_size}_clip{gelu}_{image_size}"
    if size and timm.is_model(name) and not more:
        return TimmTwin(name, {}, embed_dim)
    sizes = {"embed_dim": width, "depth": layers, "num_heads": heads, "patch_size": patch_size, "img_size": image_size}
    return TimmTwin(f"vit_base_patch16_clip{gelu}_224", sizes | more, embed_dim)


def open_clip_twin(config: dict[str, Any]) -> TimmTwin | None:
    """The twin of an open_clip model configuration's image tower; None where timm has none."""
    vision, embed_dim = config["vision_cfg"], config["embed_dim"]
    if vision.get("timm_model_name"):
        pool, proj = vision.get("timm_pool", "avg"), vision.get("timm_proj", "linear")
        if pool in ("abs_attn", "rot_attn"):
            return None
        arguments = {"global_pool": pool} if pool else {}
        if proj == "mlp":
            arguments["head_hidden_size"] = 2 * embed_dim
        return TimmTwin(vision["timm_model_name"], arguments, 0 if proj == "none" else embed_dim)
    layers, width, size = vision.get("layers", 12), vision.get("width", 768), vision.get("image_size", 224)
    if isinstance(layers, (list, tuple)):
        name = _RESNETS.get((tuple(layers), width))
        return TimmTwin(name, {"img_size": size}, embed_dim) if name else None
    if any(vision.get(option) for option in _UNUSUAL_VIT) or vision.get("pool_type", "tok") != "tok":
        return None
    more = {"mlp_ratio": vision["mlp_ratio"]} if vision.get("mlp_ratio", 4.0) != 4.0 else {}
    if vision.get("ls_init_value") is not None:
        more["init_values"] = vision["ls_init_value"]
    return vit_twin(
        width=width,
        layers=layers,
        heads=width // vision.get("head_width", 64),
        patch_size=vision.get("patch_size", 16),
        image_size=size,
        embed_dim=embed_dim,
        quick_gelu=bool(config.get("quick_gelu")),
        **more,
    )


def open_clip_translations(twin: TimmTwin, visual: nn.Module) -> list[Callable[[nn.Module], dict[str, Tensor]]]:
    """Ways to the tower's tensors under timm's names, given the timm model: timm's own, then plain renaming."""
    state = {f"visual.{name}": tensor for name, tensor in visual.state_dict().items()}
    translate = checkpoint_filter(twin.architecture)

    def renamed(model: nn.Module) -> dict[str, Tensor]:
        prefix = "visual.trunk."
        plain = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        projection = state.get("visual.head.proj.weight")
        if projection is not None:
            classifier = model.pretrained_cfg["classifier"]
            plain[f"{classifier}.weight"] = projection
            plain[f"{classifier}.bias"] = state.get("visual.head.proj.bias", torch.zeros(projection.shape[0]))
        return plain

    return [renamed] if translate is None else [lambda model: translate(dict(state), model), renamed]


def verified_twin(
    twin: TimmTwin,
    translations: Iterable[Callable[[nn.Module], dict[str, Tensor]]],
    features: Callable[[Tensor], Tensor],
    pixel_values: Tensor,
    source: str,
) -> nn.Module | None:
    """The timm model if it takes every tensor and gives the tower's features within 1e-4; None, and why, if not.

    The difference is relative to the largest feature where that exceeds 1.

    Args:
        twin: what timm should build.
        translations: from the timm model to the tower's tensors under its names, in the order in which to try them.
        features: the tower itself, from normalised images (N, 3, H, W) to features (N, D) before any normalisation.
        pixel_values: normalised images to compare on.
        source: the checkpoint's name, for the log.
    """
    try:
        model = twin.build()
    except (RuntimeError, TypeError, AssertionError) as error:
        logger.warning("timm does not build %s for %s: %s", twin, source, error)
        return None
    reasons = []
    for translate in translations:
        try:
            model.load_state_dict(translate(model), strict=True)
        except (RuntimeError, KeyError) as error:
            reasons.append(" ".join(str(error).split())[:300])
            continue
        with torch.no_grad():
            wanted = features(pixel_values)
            difference = (model(pixel_values) - wanted).abs().max().item() / max(1.0, wanted.abs().max().item())
        if difference <= TOLERANCE:
            logger.info("%s is timm's %s: features within %.1e.", source, twin.architecture, difference)
            return model
        reasons.append(f"features differ by {difference:.2g}")
    logger.warning("The image tower of %s is not timm's %s: %s.", source, twin.architecture, "; ".join(reasons))
    return None
