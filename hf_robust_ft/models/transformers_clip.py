"""transformers' CLIP and SigLIP as zero-shot image classifiers.

Their own classification classes average the patch tokens and leave the projection out, so no linear head on them can
be zero-shot. The image tower therefore goes into timm's twin architecture, checked by its features, and comes back as
a TimmWrapper checkpoint, which any transformers installation reloads.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer, PreTrainedModel

from hf_robust_ft.models.clip_twins import TimmTwin, verified_twin, vit_twin
from hf_robust_ft.models.open_clip_checkpoints import twin_classifier
from hf_robust_ft.models.trust import SAFETENSORS
from hf_robust_ft.models.zero_shot import ZeroShot, embed_classes, probe_images

_BLOCKS = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.out_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_RESAMPLING = {0: "nearest", 2: "bilinear", 3: "bicubic"}


def zero_shot_classifier(
    model_id: str, labels: dict[str, Any], prompts: Sequence[str], options: dict[str, Any]
) -> tuple[PreTrainedModel, Any]:
    """A CLIP or SigLIP checkpoint's image tower with its zero-shot head for the classes.

    Args:
        model_id: Hub id or folder with both towers and the tokenizer.
        labels: `num_labels`, `id2label`, `label2id`.
        prompts: templates with one `{}` each.
        options: of `from_pretrained`.

    Raises:
        ValueError: another kind of model, or one whose tower timm does not compute.
    """
    config = AutoConfig.from_pretrained(model_id, **options)
    if config.model_type not in ("clip", "siglip"):
        raise ValueError(
            "head='zero_shot' needs a text tower: a CLIP or SigLIP checkpoint of transformers or open_clip. "
            f"{model_id} is {config.model_type}."
        )
    model = AutoModel.from_pretrained(model_id, dtype=torch.float32, **SAFETENSORS, **options).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_id, **options)
    pretrained_cfg = _pretrained_cfg(AutoImageProcessor.from_pretrained(model_id, **options), model_id)
    images = probe_images(pretrained_cfg)
    twin, state = _twin(config, model)
    inner = verified_twin(
        twin, [lambda _: state], lambda pixels: _tensor(model.get_image_features(pixels)), images, model_id
    )
    if inner is None:
        raise ValueError(f"The image tower of {model_id} has no timm twin (see the log), so no zero-shot head.")
    padding = {"padding": "max_length" if config.model_type == "siglip" else True, "truncation": True}

    def encode(texts: list[str]) -> Tensor:
        return _tensor(model.get_text_features(**tokenizer(texts, return_tensors="pt", **padding)))

    bias = model.logit_bias.item() if hasattr(model, "logit_bias") else 0.0
    zero_shot = ZeroShot(
        embed_classes(encode, list(labels["id2label"].values()), prompts), model.logit_scale.exp().item(), bias
    )
    return twin_classifier(twin, inner, pretrained_cfg, labels, zero_shot, images)


def _tensor(features: Any) -> Tensor:
    return features if isinstance(features, Tensor) else features.pooler_output


def _twin(config: Any, model: PreTrainedModel) -> tuple[TimmTwin, dict[str, Tensor]]:
    vision = config.vision_config
    shape = {
        "width": vision.hidden_size,
        "layers": vision.num_hidden_layers,
        "heads": vision.num_attention_heads,
        "patch_size": vision.patch_size,
        "image_size": vision.image_size,
    }
    ratio = vision.intermediate_size / vision.hidden_size
    more = {} if ratio == 4.0 else {"mlp_ratio": ratio}
    state = _blocks(model.vision_model.state_dict())
    if config.model_type == "clip":
        state |= _clip_ends(model)
        quick = vision.hidden_act == "quick_gelu"
        return vit_twin(embed_dim=config.projection_dim, quick_gelu=quick, **shape, **more), state
    arguments = {
        "embed_dim": shape["width"],
        "depth": shape["layers"],
        "num_heads": shape["heads"],
        "patch_size": shape["patch_size"],
        "img_size": shape["image_size"],
        "act_layer": "gelu_tanh" if vision.hidden_act == "gelu_pytorch_tanh" else "gelu",
        **more,
    }
    return TimmTwin("vit_base_patch16_siglip_224", arguments, 0), state | _siglip_ends(model)


def _blocks(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The transformer blocks under timm's names, query, key and value stacked."""
    renamed = {}
    for name, tensor in state.items():
        if not name.startswith("encoder.layers."):
            continue
        index, _, rest = name.removeprefix("encoder.layers.").partition(".")
        module, _, kind = rest.rpartition(".")
        if module in _BLOCKS:
            renamed[f"blocks.{index}.{_BLOCKS[module]}.{kind}"] = tensor
        elif module == "self_attn.q_proj":
            parts = [state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            renamed[f"blocks.{index}.attn.qkv.{kind}"] = torch.cat(parts)
    return renamed


def _clip_ends(model: PreTrainedModel) -> dict[str, Tensor]:
    tower, projection = model.vision_model, model.visual_projection.weight
    return {
        "cls_token": tower.embeddings.class_embedding.view(1, 1, -1),
        "pos_embed": tower.embeddings.position_embedding.weight[None],
        "patch_embed.proj.weight": tower.embeddings.patch_embedding.weight,
        **_parameters("norm_pre", tower.pre_layrnorm),
        **_parameters("norm", tower.post_layernorm),
        "head.weight": projection,
        "head.bias": torch.zeros(projection.shape[0]),
    }


def _siglip_ends(model: PreTrainedModel) -> dict[str, Tensor]:
    tower, pool = model.vision_model, model.vision_model.head
    width = pool.probe.shape[-1]
    weight, bias = pool.attention.in_proj_weight, pool.attention.in_proj_bias
    return {
        "pos_embed": tower.embeddings.position_embedding.weight[None],
        **_parameters("patch_embed.proj", tower.embeddings.patch_embedding),
        **_parameters("norm", tower.post_layernorm),
        "attn_pool.latent": pool.probe,
        "attn_pool.q.weight": weight[:width],
        "attn_pool.q.bias": bias[:width],
        "attn_pool.kv.weight": weight[width:],
        "attn_pool.kv.bias": bias[width:],
        **_parameters("attn_pool.proj", pool.attention.out_proj),
        **_parameters("attn_pool.norm", pool.layernorm),
        **_parameters("attn_pool.mlp.fc1", pool.mlp.fc1),
        **_parameters("attn_pool.mlp.fc2", pool.mlp.fc2),
    }


def _parameters(name: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{name}.{kind}": tensor for kind, tensor in module.state_dict().items()}


def _pretrained_cfg(processor: Any, model_id: str) -> dict[str, Any]:
    """The checkpoint's processor in timm's terms: shortest edge and centre crop (CLIP), or both sides set (SigLIP)."""
    crops = getattr(processor, "do_center_crop", False)
    size = dict(processor.crop_size if crops else processor.size)
    edge = dict(processor.size).get("shortest_edge", size.get("height"))
    if not edge or "height" not in size or size["height"] != size["width"]:
        raise ValueError(f"The image processor of {model_id} makes no square images of one size: {processor.size}.")
    return {
        "input_size": [3, size["height"], size["width"]],
        "mean": list(processor.image_mean),
        "std": list(processor.image_std),
        "interpolation": _RESAMPLING[int(processor.resample)],
        "crop_pct": size["height"] / edge,
        "crop_mode": "center" if crops else "squash",
    }
