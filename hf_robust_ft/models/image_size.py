"""Another input size for a pretrained classifier, where its architecture allows one."""

from typing import Any

from transformers import AutoImageProcessor, PreTrainedModel, TimmWrapperForImageClassification

from hf_robust_ft.models.timm_classifier import (
    checkpoint_filter,
    fixed_size_args,
    input_config,
    require_size,
    timm_processor,
)
from hf_robust_ft.models.trust import no_code

# transformers' convolutional classifiers with a total stride of 32: any larger size will do.
_CONVOLUTIONAL = {"bit", "convnext", "convnextv2", "efficientnet", "mobilenet_v1", "mobilenet_v2", "regnet", "resnet"}
_STRIDE = 32
# Position embeddings of one size, never interpolated by a plain call of the model.
_FIXED = {"beit", "clip", "clip_vision_model", "data2vec-vision", "deit", "siglip", "siglip_vision_model", "vit"}


def input_size(processor: Any) -> tuple[int, int] | None:
    """Height and width of what an image processor makes; None where they vary with the image."""
    if hasattr(processor, "data_config"):
        return tuple(processor.data_config["input_size"][-2:])
    crops = getattr(processor, "do_center_crop", False) and getattr(processor, "crop_size", None)
    size = dict(crops or getattr(processor, "size", None) or {})
    if "height" in size and "width" in size:
        return size["height"], size["width"]
    # ConvNeXT's processor crops or squashes to a square of its shortest_edge.
    return (size["shortest_edge"],) * 2 if size.get("shortest_edge") and hasattr(processor, "crop_pct") else None


def check_image_size(image_size: int | None) -> None:
    """Raise a ValueError for what is no input side in pixels; None leaves it to the checkpoint."""
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size is a number of pixels, got {image_size}.")


def resize_input(
    model: PreTrainedModel, processor: Any, image_size: int, model_id: str, options: dict[str, Any]
) -> tuple[PreTrainedModel, Any]:
    """The classifier and its processor for square images of `image_size` pixels.

    timm's ViT, Swin and their kin get resampled position embeddings; convolutional nets take any size not below
    their stride.

    Args:
        options: what `from_pretrained` was called with.

    Raises:
        ValueError: the architecture does not take the size.
    """
    if input_size(processor) == (image_size, image_size):
        return model, processor
    if isinstance(model, TimmWrapperForImageClassification):
        return _resize_timm(model, image_size)
    if model.config.model_type not in _CONVOLUTIONAL:
        raise ValueError(
            f"{model_id} ({model.config.model_type}) takes images of {_sides(input_size(processor))} pixels only, "
            f"not of image_size={image_size}. timm/... checkpoints, convolutional ones and embedded models take others."
        )
    require_size(image_size >= _STRIDE, image_size, f"at least its stride, {_STRIDE}")
    sizes = {"size": {"shortest_edge": image_size}}
    if getattr(processor, "do_center_crop", False) and not hasattr(processor, "crop_pct"):
        edge = dict(processor.size).get("shortest_edge")
        scale = edge / processor.crop_size["height"] if edge else 1.0
        sizes = {
            "size": {"shortest_edge": round(image_size * scale)},
            "crop_size": {"height": image_size, "width": image_size},
        }
    elif not hasattr(processor, "crop_pct"):
        sizes = {"size": {"height": image_size, "width": image_size}}
    return model, AutoImageProcessor.from_pretrained(model_id, **sizes, **no_code(options))


def _sides(size: tuple[int, int] | None) -> str:
    return "its own" if size is None else f"{size[0]} x {size[1]}"


def _resize_timm(model: PreTrainedModel, image_size: int) -> tuple[PreTrainedModel, Any]:
    config, inner = model.config, model.timm_model
    args = fixed_size_args(inner, image_size, config.pretrained_cfg["input_size"][-1])
    config.pretrained_cfg = input_config({**inner.pretrained_cfg, **config.pretrained_cfg}, image_size)
    if args:
        config.model_args = {**(config.model_args or {}), **args}
        resized = type(model)(config).to(model.dtype)
        state = checkpoint_filter(config.architecture)(inner.state_dict(), resized.timm_model)
        resized.timm_model.load_state_dict(state, strict=True)
        model = resized.eval()
    return model, timm_processor(config)


def check_input_size(model: PreTrainedModel, processor: Any, model_id: str) -> None:
    """Refuse a processor whose images the model cannot take, before any of them is computed on.

    Raises:
        ValueError: images smaller than a patch, or of another size than a model with fixed position embeddings has.
    """
    made = input_size(processor)
    config = getattr(model.config, "vision_config", model.config)
    patch, size = getattr(config, "patch_size", None), getattr(config, "image_size", None)
    if made is None or not isinstance(patch, int):
        return
    require_size(min(made) >= patch, min(made), f"at least one patch of {model_id}, {patch}")
    if model.config.model_type in _FIXED and isinstance(size, int) and made != (size, size):
        raise ValueError(
            f"The image processor of {model_id} makes images of {_sides(made)} pixels, the model takes "
            f"{size} x {size}. Mend size and crop_size in its preprocessor_config.json."
        )
