"""timm architectures as TimmWrapper classifiers that any transformers installation can reload."""

import importlib
from collections.abc import Callable
from typing import Any

import timm
from torch import nn
from transformers import PreTrainedModel, TimmWrapperConfig, TimmWrapperForImageClassification
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from hf_robust_ft.provenance.choices import nearest_names


def timm_architecture(name: str) -> str:
    """The architecture of `timm/NAME` or `NAME`, a tag after a dot left aside.

    Raises:
        ValueError: timm knows no such architecture.
    """
    architecture = name.removeprefix("timm/").split(".")[0]
    if not timm.is_model(architecture):
        raise ValueError(
            f"timm {timm.__version__} knows no architecture {architecture!r}. "
            f"Nearest: {nearest_names(architecture, timm.list_models())}."
        )
    return architecture


def tagged_input(name: str) -> dict[str, Any]:
    """The input that the tag of `timm/NAME.TAG` was trained with; empty for a name without one.

    Tags of one architecture differ in normalisation (vit_small_patch16_224: ImageNet's for `dino`, 0.5 for `augreg`)
    and in size (convnext_base: 384 pixels for `fb_in22k_ft_in1k_384`).

    Raises:
        ValueError: timm knows no such tag of the architecture.
    """
    architecture, _, tag = name.removeprefix("timm/").partition(".")
    if not tag:
        return {}
    tags = timm.models.get_arch_pretrained_cfgs(architecture)
    known = [entry.partition(".")[2] for entry in tags]
    if tag not in known:
        raise ValueError(
            f"timm {timm.__version__} knows no tag {tag!r} of {architecture}. Nearest: {nearest_names(tag, known)}."
        )
    return tags[f"{architecture}.{tag}"].to_dict()


def input_config(template: dict[str, Any], image_size: int | None = None) -> dict[str, Any]:
    """What a TimmWrapper's config must say of its input, else its processor cannot be reloaded.

    Below the native size nothing is cropped in evaluation: small pictures have no border to spare.

    Args:
        template: timm's `pretrained_cfg`.
        image_size: input side in pixels; None keeps the template's.
    """
    native = template["input_size"][-1]
    size = image_size or native
    return {
        "input_size": [3, size, size],
        "mean": list(template["mean"]),
        "std": list(template["std"]),
        "interpolation": template["interpolation"],
        "crop_pct": 1.0 if size < native else template["crop_pct"],
        "crop_mode": template.get("crop_mode") or "center",
    }


def build_timm_classifier(
    architecture: str,
    labels: dict[str, Any],
    *,
    image_size: int | None = None,
    model_args: dict[str, Any] | None = None,
    pretrained_cfg: dict[str, Any] | None = None,
) -> tuple[PreTrainedModel, TimmWrapperImageProcessor]:
    """A classifier with timm's own random initialisation, and its processor.

    Args:
        architecture: timm's name, with or without `timm/`; a tag (after a dot) tells the input.
        labels: `num_labels`, `id2label`, `label2id`, as in a transformers config.
        image_size: input side in pixels; None for the architecture's own.
        model_args: further arguments of `timm.create_model`.
        pretrained_cfg: the input's normalisation, size, interpolation and crop; timm's for the architecture and its
            tag if None.

    Raises:
        ValueError: an unknown architecture or tag, or an image size it does not take.
    """
    tagged, architecture = architecture, timm_architecture(architecture)
    inner = timm.create_model(architecture, **({"num_classes": labels["num_labels"]} | (model_args or {})))
    template = {**inner.pretrained_cfg, **tagged_input(tagged), **(pretrained_cfg or {})}
    sized = fixed_size_args(inner, image_size or template["input_size"][-1], inner.pretrained_cfg["input_size"][-1])
    if sized:
        model_args = {**(model_args or {}), **sized}
        inner = timm.create_model(architecture, num_classes=labels["num_labels"], **model_args)
    config = TimmWrapperConfig(
        architecture=architecture,
        pretrained_cfg=input_config(template, image_size),
        model_args=model_args,
        **labels,
    )
    model = TimmWrapperForImageClassification(config)
    # transformers' own initialisation draws every convolution with std 0.02, from which deep nets do not train.
    model.timm_model.load_state_dict(inner.state_dict(), strict=True)
    return model, timm_processor(config)


def timm_processor(config: TimmWrapperConfig) -> TimmWrapperImageProcessor:
    """The processor that `AutoImageProcessor` would make of a saved `config`."""
    return TimmWrapperImageProcessor(pretrained_cfg=config.pretrained_cfg, architecture=config.architecture)


def store_timm_processor(processor: Any, config: Any) -> None:
    """Write a timm processor's settings into the model's config, in place: its own `save_pretrained` writes nothing.

    Other processors, models and configs that say the same already are left alone.
    """
    if not isinstance(processor, TimmWrapperImageProcessor) or getattr(config, "model_type", None) != "timm_wrapper":
        return
    stored = getattr(config, "pretrained_cfg", None) or {}
    if not stored or timm.data.resolve_data_config(stored, model=None) != processor.data_config:
        config.pretrained_cfg = {**stored, **processor.data_config}


def mend_timm_config(config: TimmWrapperConfig) -> None:
    """Remove from a loaded config what transformers would trip over, in place.

    timm 1.0.31 exports `num_classes` among the arguments, which transformers passes a second time; and the stored
    `label_names` would be saved again in place of new classes' names.
    """
    if config.model_args:
        config.model_args = {name: value for name, value in config.model_args.items() if name != "num_classes"}
    if hasattr(config, "label_names"):
        del config.label_names


def checkpoint_filter(architecture: str) -> Callable[[dict, nn.Module], dict] | None:
    """timm's own translation of foreign tensor names and shapes for an architecture, if it has one."""
    family = importlib.import_module(timm.models.model_entrypoint(architecture).__module__)
    return getattr(family, "checkpoint_filter_fn", None)


def fixed_size_args(inner: nn.Module, image_size: int, native: int) -> dict[str, int]:
    """What a timm architecture needs to be told of the size; nothing for a fully convolutional one.

    Raises:
        ValueError: a size below the patch or stride, no multiple of the patch, or an architecture of one size.
    """
    embedding = getattr(inner, "patch_embed", None)
    patch = getattr(embedding, "patch_size", None)
    if patch is None:
        reduction = max((entry["reduction"] for entry in getattr(inner, "feature_info", [])), default=1)
        require_size(image_size >= reduction, image_size, f"at least the network's stride, {reduction}")
    else:
        side = max(patch) if isinstance(patch, (tuple, list)) else patch
        require_size(image_size >= side, image_size, f"at least one patch, {side}")
        require_size(image_size % side == 0, image_size, f"a multiple of the patch size, {side}")
    if image_size == native or not inner.pretrained_cfg.get("fixed_input_size"):
        return {}
    if not hasattr(inner, "set_input_size") or checkpoint_filter(inner.pretrained_cfg["architecture"]) is None:
        raise ValueError(f"{type(inner).__name__} takes images of {native} pixels only, got image_size={image_size}.")
    return {"img_size": image_size}


def require_size(holds: bool, image_size: int, what: str) -> None:
    """Raise a ValueError that says what an image size must be, unless it `holds`."""
    if not holds:
        raise ValueError(f"image_size must be {what}; got {image_size}.")
