"""A Hub id, a folder or a short name -> a plain transformers detection model and its image processor; experimental."""

import logging
import os
from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForObjectDetection,
    PreTrainedModel,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrImageProcessor,
    TimmBackboneConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES

from hf_robust_ft.models.backbones import BACKBONES
from hf_robust_ft.models.efficientnet_lite import EMBEDDED_MODELS, EfficientNetLite, load_in_order
from hf_robust_ft.models.heads import class_labels, replaces_head
from hf_robust_ft.models.loading import check_there, verified
from hf_robust_ft.models.stated_architectures import stated_architectures
from hf_robust_ft.models.trust import SAFETENSORS, no_code, refusals_explained
from hf_robust_ft.provenance.choices import check_choice
from hf_robust_ft.provenance.class_names import class_names

HEADS = ("auto", "new", "keep")
KNOWN = frozenset(MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES.values())
STAGES, WIDTH, HEADS_OF_ATTENTION, QUERIES = (1, 2), 96, 3, 20  # stride 4 and 8: images of 64 pixels, few objects

logger = logging.getLogger(__name__)


def detects(model_id: str, revision: str | None = None) -> bool:
    """Whether a checkpoint's config names a model for object detection; not where no config is to be had."""
    return not KNOWN.isdisjoint(stated_architectures(model_id, revision))


def load_detection_model(
    model_id: str,
    *,
    label_names: Sequence[str] | None = None,
    num_labels: int | None = None,
    image_size: int | None = None,
    seed: int = 0,
    head: str = "auto",
    **from_pretrained: Any,
) -> tuple[PreTrainedModel, Any]:
    """Load a detection model for the given classes, and its image processor.

    Args:
        model_id: any DETR-like `AutoModelForObjectDetection` id or local folder; or embedded: `efficientnet_lite0`,
            `1`, `2`, whose ImageNet features get a small RT-DETR.
        label_names: the classes, which become `id2label`.
        num_labels: their number, when they have no names.
        image_size: input side in pixels; the checkpoint's own by default. Images are squeezed to a square of it.
        seed: of a new head; the global random state is left alone.
        head: `auto` replaces a head of unnamed classes where the classes differ, and refuses to replace one fine-tuned
            to other named classes (COCO's, too); `new` replaces it; `keep` does not.
        from_pretrained: passed to `from_pretrained` (`revision`, `token`, ...); `dtype` is float32 unless given.

    Returns:
        A transformers model, and the image processor that makes its `pixel_values` and `labels`.

    Raises:
        ValueError: an unknown name, names and number that disagree, fewer than two classes, a model that is none for
            object detection, a head that may not be replaced, or images of no one size.
        OSError: the Hub has no such model, it does not answer, or the disk is full.
    """
    check_choice("head", head, HEADS)
    labels = class_labels(label_names, num_labels)
    if image_size is not None and image_size < 32:
        raise ValueError(f"image_size must be at least 32 pixels for detection, got {image_size}.")
    if model_id in BACKBONES:
        raise ValueError(
            f"{model_id} is a classifier's backbone, which has no detection head in transformers. For object-detection "
            "give an AutoModelForObjectDetection id (hustvl/yolos-tiny, PekingU/rtdetr_r18vd), a checkpoint folder, or "
            f"embedded: {', '.join(EMBEDDED_MODELS)}."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if model_id in EMBEDDED_MODELS:
            if from_pretrained or head == "keep":
                raise ValueError(f"{model_id} is embedded, gets a new head and takes no {sorted(from_pretrained)}.")
            return _embedded(EMBEDDED_MODELS[model_id], labels, image_size)
        model_id = os.path.expanduser(model_id)
        check_there(model_id, from_pretrained)
        with verified(model_id, from_pretrained), refusals_explained(model_id):
            model = _from_hub(model_id, labels, head, dict(from_pretrained))
        options = {name: value for name, value in from_pretrained.items() if name != "dtype"}
        return model, _processor(model_id, image_size, options)


def _embedded(
    spec: EfficientNetLite, labels: dict[str, Any], image_size: int | None
) -> tuple[PreTrainedModel, RTDetrImageProcessor]:
    """ImageNet features under a small RT-DETR, all of it transformers' own classes."""
    if not labels:
        raise ValueError("The embedded model has no detection head yet: give label_names or num_labels.")
    whole = timm.create_model(spec.architecture)
    load_in_order(whole, spec.weights(), keep_head=True)
    channels = [whole.feature_info[stage]["num_chs"] for stage in STAGES]
    strides = [whole.feature_info[stage]["reduction"] for stage in STAGES]
    levels = len(STAGES)
    config = RTDetrConfig(
        backbone_config=TimmBackboneConfig(
            backbone=spec.architecture, out_indices=STAGES, use_pretrained_backbone=False
        ),
        freeze_backbone_batch_norms=False,  # training under attack has a policy of its own
        encoder_in_channels=channels,
        feat_strides=strides,
        encode_proj_layers=[levels - 1],
        encoder_hidden_dim=WIDTH,
        encoder_ffn_dim=2 * WIDTH,
        encoder_attention_heads=HEADS_OF_ATTENTION,
        hidden_expansion=0.5,
        d_model=WIDTH,
        decoder_in_channels=[WIDTH] * levels,
        num_feature_levels=levels,
        decoder_ffn_dim=2 * WIDTH,
        decoder_attention_heads=HEADS_OF_ATTENTION,
        decoder_layers=2,
        num_queries=QUERIES,
        num_denoising=0,
        **labels,
    )
    model = RTDetrForObjectDetection(config)
    features = next(module for module in model.modules() if hasattr(module, "feature_info"))
    saved = whole.state_dict()
    features.load_state_dict({name: saved[name] for name in features.state_dict()}, strict=True)
    _settle_batch_norm(model)
    template, side = whole.pretrained_cfg, image_size or spec.image_size
    processor = RTDetrImageProcessor(
        size={"height": side, "width": side},
        do_normalize=True,
        image_mean=list(template["mean"]),
        image_std=list(template["std"]),
    )
    return model.eval(), processor


def _settle_batch_norm(model: RTDetrForObjectDetection) -> None:
    """Give the encoder's BatchNorm statistics of random textures, as `models.segmentation` does its decoder's."""
    new = [
        module
        for name, module in model.named_modules()
        if "backbone" not in name and isinstance(module, nn.BatchNorm2d)
    ]
    model.eval()
    for module in new:
        module.momentum = None  # the mean over all that it sees
        module.train()
    with torch.no_grad():
        model(nn.functional.interpolate(torch.randn(32, 3, 8, 8), size=64, mode="bicubic"))
    for module in new:
        module.momentum = 0.1


def _from_hub(model_id: str, labels: dict[str, Any], head: str, options: dict[str, Any]) -> PreTrainedModel:
    options = no_code(options)
    dtype = options.pop("dtype", torch.float32)
    config = AutoConfig.from_pretrained(model_id, **options)
    if config.model_type not in MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES:
        raise ValueError(
            f"{model_id} ({config.model_type}) is no model for object detection. Types that are: "
            f"{', '.join(sorted(MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES))}. For a classifier use --task "
            "image-classification."
        )
    known = class_names(config)
    new_head = replaces_head(head, known, labels, model_id)
    if "label2id" in labels and sorted(known) == sorted(labels["label2id"]) and not new_head:
        labels = {}  # a head that already knows these classes keeps its own order
    if labels:
        config = AutoConfig.from_pretrained(model_id, **labels, **options)
    model, info = AutoModelForObjectDetection.from_pretrained(
        model_id,
        config=config,
        ignore_mismatched_sizes=new_head,
        output_loading_info=True,
        dtype=dtype,
        **{**SAFETENSORS, **options},
    )
    drawn = set(info["missing_keys"]) | {entry[0] for entry in info["mismatched_keys"]}
    if drawn and not labels:
        raise ValueError(
            f"{model_id} lacks tensors of {type(model).__name__}, or has them in other shapes: "
            f"{', '.join(sorted(drawn)[:5])}. The checkpoint is incomplete or of another architecture."
        )
    if drawn:
        logger.warning("%s: %d tensors of the detection head are new, for %d classes.", model_id, len(drawn),
                       labels["num_labels"])  # fmt: skip
    elif new_head:
        _redraw_classifiers(model)
        logger.warning("The classes of %s are replaced by %d new ones.", model_id, labels["num_labels"])
    return model


def _redraw_classifiers(model: PreTrainedModel) -> None:
    """New weights for the layers that name classes, whose shapes did not tell that the classes are others."""
    widths = (model.config.num_labels, model.config.num_labels + 1)  # DETR's with no object
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module.out_features in widths and ("class" in name or "score" in name):
            module.reset_parameters()


def _processor(model_id: str, image_size: int | None, options: dict[str, Any]) -> Any:
    if image_size is not None:
        options = options | {"size": {"height": image_size, "width": image_size}, "do_resize": True}
    processor = AutoImageProcessor.from_pretrained(model_id, **options)
    size = getattr(processor, "size", None)
    if not size or not size.get("height"):
        raise ValueError(
            f"The image processor of {model_id} keeps the shape of each image (size {dict(size or {})}), so no batch "
            "can be made of several: give image_size, e.g. 640, to which all are squeezed."
        )
    return processor
