"""How models whose labels lie within images are loaded: what segmentation and detection have in common."""

import os
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from hf_robust_ft.models.backbones import BACKBONES
from hf_robust_ft.models.checkpoint_source import check_there, verified
from hf_robust_ft.models.efficientnet_lite import EMBEDDED_MODELS, EfficientNetLite, load_in_order
from hf_robust_ft.models.heads import config_for
from hf_robust_ft.models.stated_architectures import stated_architectures
from hf_robust_ft.models.trust import SAFETENSORS, no_code, refusals_explained
from hf_robust_ft.provenance.choices import check_choice

HEADS = ("auto", "new", "keep")


@dataclass(frozen=True)
class DenseTask:
    """A task, and what of loading its models is its own.

    Attributes:
        name, described, pipeline_tag: as in "segmentation", "semantic segmentation", "image-segmentation".
        auto_class: transformers' auto class.
        architectures: transformers' classes for it, by model type.
        examples: Hub ids of such models, for messages.
        embedded: (weights, config's labels, image size) -> ImageNet features under a small head, and a processor.
        finish: what a checkpoint's head needs: (model, names of tensors that it lacks or has in other shapes, labels,
            head, whether the head is new, model id).
        processor: (model id, image size, options of `from_pretrained`) -> its image processor.
    """

    name: str
    described: str
    pipeline_tag: str
    auto_class: Any
    architectures: Mapping[str, str]
    examples: str
    embedded: Callable[[EfficientNetLite, dict[str, Any], int | None], tuple[PreTrainedModel, Any]]
    finish: Callable[[PreTrainedModel, Set[str], dict[str, Any], str, bool, str], None]
    processor: Callable[[str, int | None, dict[str, Any]], Any]

    def is_stated_by(self, model_id: str, revision: str | None = None) -> bool:
        """Whether a checkpoint's config names a model for it; not where no config is to be had."""
        return not stated_architectures(model_id, revision).isdisjoint(self.architectures.values())


def load_dense_model(
    task: DenseTask,
    model_id: str,
    labels: dict[str, Any],
    image_size: int | None,
    seed: int,
    head: str,
    from_pretrained: dict[str, Any],
) -> tuple[PreTrainedModel, Any]:
    """The model and its image processor, as the task's public loader describes them.

    Args:
        labels: of `heads.class_labels`.
    """
    check_choice("head", head, HEADS)
    if image_size is not None and image_size < 32:
        raise ValueError(f"image_size must be at least 32 pixels for {task.name}, got {image_size}.")
    if model_id in BACKBONES:
        raise ValueError(
            f"{model_id} is a classifier's backbone, which has no {task.name} head in transformers. For "
            f"{task.pipeline_tag} give an {task.auto_class.__name__} id ({task.examples}), a checkpoint folder, or "
            f"embedded: {', '.join(EMBEDDED_MODELS)}."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if model_id in EMBEDDED_MODELS:
            if from_pretrained or head == "keep":
                raise ValueError(f"{model_id} is embedded, gets a new head and takes no {sorted(from_pretrained)}.")
            if not labels:
                raise ValueError(f"The embedded model has no {task.name} head yet: give label_names or num_labels.")
            return task.embedded(EMBEDDED_MODELS[model_id], labels, image_size)
        model_id = os.path.expanduser(model_id)
        check_there(model_id, from_pretrained)
        with verified(model_id, from_pretrained), refusals_explained(model_id):
            model = _from_hub(task, model_id, labels, head, from_pretrained)
        options = {name: value for name, value in from_pretrained.items() if name != "dtype"}
        return model, task.processor(model_id, image_size, options)


def _from_hub(
    task: DenseTask, model_id: str, labels: dict[str, Any], head: str, from_pretrained: dict[str, Any]
) -> PreTrainedModel:
    options = no_code(from_pretrained)
    dtype = options.pop("dtype", torch.float32)
    config = AutoConfig.from_pretrained(model_id, **options)
    if config.model_type not in task.architectures:
        raise ValueError(
            f"{model_id} ({config.model_type}) is no model for {task.described}. Types that are: "
            f"{', '.join(sorted(task.architectures))}. For a classifier use --task image-classification."
        )
    config, labels, new_head = config_for(labels, config, model_id, head, options)
    model, info = task.auto_class.from_pretrained(
        model_id,
        config=config,
        ignore_mismatched_sizes=new_head,
        output_loading_info=True,
        dtype=dtype,
        **{**SAFETENSORS, **options},
    )
    drawn = set(info["missing_keys"]) | {entry[0] for entry in info["mismatched_keys"]}
    task.finish(model, drawn, labels, head, new_head, model_id)
    return model


def refuse_missing(model: PreTrainedModel, missing: Set[str], model_id: str) -> None:
    """Raise a ValueError where a checkpoint lacks tensors that it must have."""
    if missing:
        raise ValueError(
            f"{model_id} lacks tensors of {type(model).__name__}, or has them in other shapes: "
            f"{', '.join(sorted(missing)[:5])}. The checkpoint is incomplete or of another architecture."
        )


def imagenet_features(spec: EfficientNetLite) -> nn.Module:
    """The whole timm model with its packaged weights, whose early layers an embedded model takes over."""
    whole = timm.create_model(spec.architecture)
    load_in_order(whole, spec.weights(), keep_head=True)
    return whole


def take_features(features: nn.Module, whole: nn.Module) -> None:
    """Copy what `features` has of the whole timm model."""
    saved = whole.state_dict()
    features.load_state_dict({name: saved[name] for name in features.state_dict()}, strict=True)


def settle_batch_norm(model: nn.Module, head: Iterable[nn.Module]) -> None:
    """Give the BatchNorm layers of a new head the statistics of random textures, before the first step.

    transformers leaves them to the first batches of training, which robust training does not let it
    (`batch_norm: frozen`). Everything else in the model is in evaluation mode.
    """
    new = [module for module in head if isinstance(module, nn.BatchNorm2d)]
    model.eval()
    for module in new:
        module.momentum = None  # the mean over all that it sees
        module.train()
    with torch.no_grad():
        model(nn.functional.interpolate(torch.randn(32, 3, 8, 8), size=64, mode="bicubic"))
    for module in new:
        module.momentum = 0.1
