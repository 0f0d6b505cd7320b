"""A Hub id, a folder, a file or a short name -> a plain transformers classifier and its image processor."""

import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel

from hf_robust_ft.models.backbones import BACKBONES, unknown_model
from hf_robust_ft.models.checkpoint_source import check_there, verified
from hf_robust_ft.models.efficientnet_lite import EMBEDDED_MODELS, load_efficientnet_lite
from hf_robust_ft.models.heads import (
    HEADS,
    announce_new_head,
    class_labels,
    config_for,
    head_parameter_names,
    reinitialise_head,
    replaces_head,
)
from hf_robust_ft.models.image_size import check_image_size, check_input_size, resize_input
from hf_robust_ft.models.open_clip_checkpoints import PREFIX, is_open_clip, load_open_clip, open_clip_classifier
from hf_robust_ft.models.timm_classifier import mend_timm_config
from hf_robust_ft.models.transformers_clip import zero_shot_classifier
from hf_robust_ft.models.trust import SAFETENSORS, no_code, refusals_explained
from hf_robust_ft.models.weight_files import SUFFIXES, load_weight_file
from hf_robust_ft.models.zero_shot import DEFAULT_PROMPTS, check_prompts
from hf_robust_ft.provenance.choices import check_choice
from hf_robust_ft.provenance.class_names import class_names
from hf_robust_ft.provenance.source_names import nothing_here

logger = logging.getLogger(__name__)


def load_image_classifier(
    model_id: str,
    *,
    label_names: Sequence[str] | None = None,
    num_labels: int | None = None,
    image_size: int | None = None,
    seed: int = 0,
    head: str = "auto",
    prompts: Sequence[str] = DEFAULT_PROMPTS,
    architecture: str | None = None,
    **from_pretrained: Any,
) -> tuple[PreTrainedModel, Any]:
    """Load a pretrained classifier with a head for the given classes, and its image processor.

    Args:
        model_id: one of
            a name of the paper's backbones (`vit`, `swin`, `cnx`, `r50`, `clip_vit`, `clip_cnx`; 224 pixels);
            any `AutoModelForImageClassification` id or local folder (timm ids included: `timm/...`);
            an open_clip repository or folder, `open_clip:ViT-B-32` or `open_clip:ViT-B-32/laion2b_s34b_b79k`;
            a weight file (.safetensors, .pt, .pth, .bin) with its `architecture`;
            `efficientnet_lite0`, `1`, `2`, whose ImageNet weights come from packages (extras `demo`, `lite`).
        label_names: the classes, which become `id2label`. A checkpoint with the same classes in another order keeps
            its own order.
        num_labels: their number, when they have no names.
        image_size: input side in pixels, for embedded models, timm's (ViT and Swin get resampled position
            embeddings) and convolutional nets; others keep their processor's.
        seed: of a new head; the global random state is left alone.
        head: `auto` replaces a pretraining head (unnamed classes, or 1000 and more) where the classes differ, says
            so in the log, and refuses to replace one fine-tuned to other named classes; `new` always replaces;
            `keep` never does; `zero_shot` folds the class prompts of a CLIP or SigLIP text tower into the head, see
            `hf_robust_ft.models.zero_shot` for what is exact.
        prompts: templates of `zero_shot`, with one `{}` each for the class name.
        architecture: what a weight file holds: one of the paper's names, `timm/resnet18`, `open_clip:ViT-B-32`, or a
            folder or Hub id with a transformers config.
        from_pretrained: passed to `from_pretrained` (`revision`, `token`, `trust_remote_code`, ...); `dtype` is
            float32 unless given, whatever the checkpoint was stored in. Code of a checkpoint's own runs only with
            `trust_remote_code=True`, and weights are read from safetensors only.

    Returns:
        A transformers classifier, and the image processor that makes its `pixel_values`.

    Raises:
        ValueError: an unknown name, names and number that disagree, fewer than two classes, a head that may not be
            replaced or is missing, a checkpoint with code of its own or without safetensors, tensors that do not fit,
            or an option or image size the model does not take.
        OSError: the Hub has no such model that the token may read (as transformers says it), it does not answer, or
            the disk is full.
    """
    labels = class_labels(label_names, num_labels)
    prompts = _check_options(head, prompts, labels, image_size)
    model_id, image_size = _resolve(os.path.expanduser(model_id), image_size, head)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if os.path.isfile(model_id):
            model, processor = _from_file(model_id, architecture, labels, image_size, head, prompts, from_pretrained)
        elif architecture is not None:
            raise ValueError(f"architecture is for weight files ({', '.join(SUFFIXES)}); {model_id} is none.")
        elif model_id in EMBEDDED_MODELS:
            model, processor = _embedded(model_id, image_size, labels, head, from_pretrained)
        else:
            check_there(model_id, from_pretrained)
            with verified(model_id, from_pretrained), refusals_explained(model_id):
                model, processor = _from_hub(model_id, labels, head, prompts, dict(from_pretrained))
            from_pretrained.pop("dtype", None)
            if image_size is not None:
                model, processor = resize_input(model, processor, image_size, model_id, from_pretrained)
    check_input_size(model, processor, model_id)
    return model, processor


def _check_options(head: str, prompts: Sequence[str], labels: dict[str, Any], image_size: int | None) -> Sequence[str]:
    check_choice("head", head, HEADS)
    check_image_size(image_size)
    if head == "zero_shot":
        return check_prompts(prompts, labels)
    if tuple(prompts) != DEFAULT_PROMPTS:
        raise ValueError(f"prompts are for head='zero_shot', got head={head!r}.")
    return prompts


def _resolve(model_id: str, image_size: int | None, head: str) -> tuple[str, int | None]:
    """The checkpoint behind a short name, and the input size that goes with it."""
    backbone = BACKBONES.get(model_id)
    if (backbone is not None or model_id in EMBEDDED_MODELS) and os.path.exists(model_id):
        meant = backbone.hub_id if backbone is not None else "the embedded model"
        logger.warning("%s means %s here, not what lies in this folder: that is ./%s.", model_id, meant, model_id)
    if backbone is not None:
        source = backbone.hub_id
        if head == "zero_shot":
            if backbone.text_tower_id is None:
                able = ", ".join(alias for alias, entry in BACKBONES.items() if entry.text_tower_id)
                raise ValueError(f"head='zero_shot' needs a text tower, which {model_id} has not. Of the six: {able}.")
            source = backbone.text_tower_id
        return source, image_size or backbone.image_size
    if os.path.exists(model_id) or model_id in EMBEDDED_MODELS or model_id.startswith(PREFIX):
        return model_id, image_size
    if model_id.endswith(SUFFIXES):
        raise ValueError(f"There is no weight file {model_id}. {nothing_here(model_id)}")
    if model_id.startswith((".", "/", "~")):
        raise ValueError(f"{nothing_here(model_id)} Give a checkpoint folder, a weight file or a Hub model id.")
    if "/" not in model_id:
        raise unknown_model(model_id)
    return model_id, image_size


def _embedded(
    name: str, image_size: int | None, labels: dict[str, Any], head: str, from_pretrained: dict[str, Any]
) -> tuple[PreTrainedModel, Any]:
    if from_pretrained:
        raise ValueError(f"{name} is embedded and takes no {sorted(from_pretrained)}.")
    if head == "zero_shot":
        raise ValueError(f"head='zero_shot' needs a text tower, which {name} has not. Try clip_vit or clip_cnx.")
    known = [f"LABEL_{index}" for index in range(1000)]
    new_head = replaces_head(head, known, labels, name)
    if new_head:
        announce_new_head(name, len(known), labels)
    return load_efficientnet_lite(EMBEDDED_MODELS[name], image_size, labels, new_head)


def _from_file(
    path: str,
    architecture: str | None,
    labels: dict[str, Any],
    image_size: int | None,
    head: str,
    prompts: Sequence[str],
    from_pretrained: dict[str, Any],
) -> tuple[PreTrainedModel, Any]:
    if from_pretrained:
        raise ValueError(f"A weight file takes no {sorted(from_pretrained)}.")
    if not path.endswith(SUFFIXES):
        raise ValueError(f"{path} is no weight file: its name must end in {', '.join(SUFFIXES)}.")
    if architecture in BACKBONES:
        backbone = BACKBONES[architecture]
        architecture, image_size = backbone.architecture or backbone.hub_id, image_size or backbone.image_size
    if architecture is not None and architecture.startswith(PREFIX):
        model, processor = _open_clip(architecture, labels, head, prompts, {}, weights=path)
        if image_size is not None:
            model, processor = resize_input(model, processor, image_size, path, {})
        return model, processor
    if head == "zero_shot":
        raise ValueError("head='zero_shot' with a weight file needs an architecture of both towers: open_clip:NAME.")
    return load_weight_file(path, architecture, labels, image_size, head)


def _from_hub(
    model_id: str, labels: dict[str, Any], head: str, prompts: Sequence[str], from_pretrained: dict[str, Any]
) -> tuple[PreTrainedModel, Any]:
    if is_open_clip(model_id, from_pretrained):
        return _open_clip(model_id, labels, head, prompts, from_pretrained)
    from_pretrained = no_code(from_pretrained)
    dtype = from_pretrained.pop("dtype", torch.float32)
    if head == "zero_shot":
        model, processor = zero_shot_classifier(model_id, labels, prompts, from_pretrained)
        return model.to(dtype), processor
    config = AutoConfig.from_pretrained(model_id, **from_pretrained)
    known = len(class_names(config))
    config, labels, new_head = config_for(labels, config, model_id, head, from_pretrained)
    if config.model_type == "timm_wrapper":
        mend_timm_config(config)
    model, info = AutoModelForImageClassification.from_pretrained(
        model_id,
        config=config,
        ignore_mismatched_sizes=new_head,
        output_loading_info=True,
        dtype=dtype,
        **{**SAFETENSORS, **from_pretrained},
    )
    missing = info["missing_keys"]
    _check_loaded(model, info, model_id, may_be_new=bool(labels) and head != "keep")
    if new_head or missing:
        announce_new_head(model_id, None if missing else known, labels)
    if new_head and not missing and not info["mismatched_keys"]:
        reinitialise_head(model)
    return model, AutoImageProcessor.from_pretrained(model_id, **from_pretrained)


def _check_loaded(model: PreTrainedModel, info: dict[str, Any], model_id: str, may_be_new: bool) -> None:
    """Nothing but a head that was asked for may have been drawn at random."""
    drawn = set(info["missing_keys"]) | {entry[0] for entry in info["mismatched_keys"]}
    ends = head_parameter_names(model)
    if drawn - ends:
        raise ValueError(
            f"{model_id} lacks tensors of {type(model).__name__}, or has them in other shapes: "
            f"{', '.join(sorted(drawn - ends)[:5])}. The checkpoint is incomplete or of another architecture."
        )
    if drawn and not may_be_new:
        raise ValueError(f"{model_id} holds no classification head: give label_names or num_labels for a new one.")


def _open_clip(
    model_id: str,
    labels: dict[str, Any],
    head: str,
    prompts: Sequence[str],
    options: dict[str, Any],
    weights: str | None = None,
) -> tuple[PreTrainedModel, Any]:
    if not labels or head == "keep":
        raise ValueError(f"{model_id} holds no classification head: give label_names or num_labels for a new one.")
    source = load_open_clip(model_id, options, weights)
    return open_clip_classifier(source, labels, prompts if head == "zero_shot" else None)
