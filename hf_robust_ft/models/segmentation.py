"""A Hub id, a folder or a short name -> a plain transformers segmentation model and its image processor."""

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
    AutoModelForSemanticSegmentation,
    PreTrainedModel,
    SegformerImageProcessor,
    TimmBackboneConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

from hf_robust_ft.models.backbones import BACKBONES
from hf_robust_ft.models.efficientnet_lite import EMBEDDED_MODELS, EfficientNetLite, load_in_order
from hf_robust_ft.models.heads import class_labels, replaces_head
from hf_robust_ft.models.loading import check_there, verified
from hf_robust_ft.models.stated_architectures import stated_architectures
from hf_robust_ft.models.trust import SAFETENSORS, no_code, refusals_explained
from hf_robust_ft.provenance.choices import check_choice
from hf_robust_ft.provenance.class_names import class_names

HEADS = ("auto", "new", "keep")
STAGES = [1, 2, 3]  # of EfficientNet-Lite: maps of stride 4, 8 and 16
WIDTH = 48  # channels of the embedded model's head

KNOWN = frozenset(MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES.values())

logger = logging.getLogger(__name__)


def segments(model_id: str, revision: str | None = None) -> bool:
    """Whether a checkpoint's config names a model for semantic segmentation; not where no config is to be had."""
    return not KNOWN.isdisjoint(stated_architectures(model_id, revision))


def load_segmentation_model(
    model_id: str,
    *,
    label_names: Sequence[str] | None = None,
    num_labels: int | None = None,
    image_size: int | None = None,
    seed: int = 0,
    head: str = "auto",
    **from_pretrained: Any,
) -> tuple[PreTrainedModel, Any]:
    """Load a pretrained network with a segmentation head for the given classes, and its image processor.

    Args:
        model_id: any `AutoModelForSemanticSegmentation` id or local folder, also a pretrained encoder of one of its
            kinds (`nvidia/mit-b0`, which gets a new decoder); or embedded: `efficientnet_lite0`, `1`, `2`, whose
            ImageNet features get a light UperNet head.
        label_names: the classes, which become `id2label`.
        num_labels: their number, when they have no names.
        image_size: input side in pixels; the checkpoint's own by default. Images are squeezed to a square of it.
        seed: of a new head; the global random state is left alone.
        head: `auto` replaces a head of pretraining (unnamed classes, or 1000 and more) where the classes differ, and
            refuses to replace one fine-tuned to other named classes; `new` replaces it; `keep` does not.
        from_pretrained: passed to `from_pretrained` (`revision`, `token`, ...); `dtype` is float32 unless given.

    Returns:
        A transformers model, and the image processor that makes its `pixel_values`.

    Raises:
        ValueError: an unknown name, names and number that disagree, fewer than two classes, a model that is none for
            semantic segmentation, a head that may not be replaced, or a processor whose size cannot be set.
        OSError: the Hub has no such model, it does not answer, or the disk is full.
    """
    check_choice("head", head, HEADS)
    labels = class_labels(label_names, num_labels)
    if image_size is not None and image_size < 32:
        raise ValueError(f"image_size must be at least 32 pixels for segmentation, got {image_size}.")
    if model_id in BACKBONES:
        raise ValueError(
            f"{model_id} is a classifier's backbone, which has no segmentation head in transformers. For "
            "image-segmentation give an AutoModelForSemanticSegmentation id (nvidia/mit-b0, "
            f"openmmlab/upernet-swin-tiny), a checkpoint folder, or embedded: {', '.join(EMBEDDED_MODELS)}."
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


def head_names(model: PreTrainedModel) -> set[str]:
    """Names of all parameters and buffers that are none of the encoder's: decoder, classifier, auxiliary head."""
    encoder = tuple(f"{name}." for name in {model.base_model_prefix, "backbone"} if hasattr(model, name or "?"))
    return {name for name in model.state_dict() if not name.startswith(encoder)}


def _embedded(
    spec: EfficientNetLite, labels: dict[str, Any], image_size: int | None
) -> tuple[PreTrainedModel, SegformerImageProcessor]:
    """ImageNet features under a UperNet head, all of it transformers' own classes."""
    if not labels:
        raise ValueError("The embedded model has no segmentation head yet: give label_names or num_labels.")
    whole = timm.create_model(spec.architecture)
    load_in_order(whole, spec.weights(), keep_head=True)
    model = embedded_architecture(spec, labels)
    features, saved = model.backbone._backbone, whole.state_dict()
    features.load_state_dict({name: saved[name] for name in features.state_dict()}, strict=True)
    _draw_head(model)
    template, side = whole.pretrained_cfg, image_size or spec.image_size
    processor = SegformerImageProcessor(
        size={"height": side, "width": side}, image_mean=list(template["mean"]), image_std=list(template["std"])
    )
    return model.eval(), processor


def embedded_architecture(spec: EfficientNetLite, labels: dict[str, Any]) -> UperNetForSemanticSegmentation:
    """The embedded model for these classes, before any weights are read."""
    backbone = TimmBackboneConfig(backbone=spec.architecture, out_indices=STAGES, use_pretrained_backbone=False)
    config = UperNetConfig(backbone_config=backbone, hidden_size=WIDTH, use_auxiliary_head=False, **labels)
    return UperNetForSemanticSegmentation(config)


def _draw_head(model: UperNetForSemanticSegmentation) -> None:
    """A decoder whose activations keep their scale, and whose BatchNorm knows it before the first step.

    transformers draws weights with std 0.02 and leaves BatchNorm to the first batches of training, which robust
    training does not let it (`batch_norm: frozen`): here its statistics are those of random textures.
    """
    head = model.decode_head
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all that it sees
    nn.init.normal_(head.classifier.weight, std=0.01)
    coarse = torch.randn(32, 3, 8, 8)
    model.eval()
    head.train()
    with torch.no_grad():
        model(nn.functional.interpolate(coarse, size=64, mode="bicubic"))
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1


def _from_hub(model_id: str, labels: dict[str, Any], head: str, options: dict[str, Any]) -> PreTrainedModel:
    options = no_code(options)
    dtype = options.pop("dtype", torch.float32)
    config = AutoConfig.from_pretrained(model_id, **options)
    _check_segments(config, model_id)
    known = class_names(config)
    new_head = replaces_head(head, known, labels, model_id)
    if "label2id" in labels and sorted(known) == sorted(labels["label2id"]) and not new_head:
        labels = {}  # a head that already knows these classes keeps its own order
    if labels:
        config = AutoConfig.from_pretrained(model_id, **labels, **options)
    model, info = AutoModelForSemanticSegmentation.from_pretrained(
        model_id,
        config=config,
        ignore_mismatched_sizes=new_head,
        output_loading_info=True,
        dtype=dtype,
        **{**SAFETENSORS, **options},
    )
    drawn, ends = set(info["missing_keys"]) | {entry[0] for entry in info["mismatched_keys"]}, head_names(model)
    if drawn - ends:
        raise ValueError(
            f"{model_id} lacks tensors of {type(model).__name__}, or has them in other shapes: "
            f"{', '.join(sorted(drawn - ends)[:5])}. The checkpoint is incomplete or of another architecture."
        )
    if drawn and (not labels or head == "keep"):
        raise ValueError(f"{model_id} holds no segmentation head: give label_names or num_labels for a new one.")
    if drawn:
        logger.warning(
            "%s: %d of %d tensors of the segmentation head are new, for %d classes.",
            model_id, len(drawn), len(ends), labels["num_labels"],
        )  # fmt: skip
    elif new_head:
        _redraw_classifiers(model)
        logger.warning("The classifier of %s is replaced by a new one for %d classes.", model_id, labels["num_labels"])
    return model


def _check_segments(config: Any, model_id: str) -> None:
    if config.model_type in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES:
        return
    raise ValueError(
        f"{model_id} ({config.model_type}) is no model for semantic segmentation. Types that are: "
        f"{', '.join(sorted(MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES))}. For a classifier use --task "
        "image-classification."
    )


def _redraw_classifiers(model: PreTrainedModel) -> None:
    """New weights for the last convolutions, whose shapes did not tell that the classes are others."""
    std = getattr(model.config, "initializer_range", 0.02)
    ends = head_names(model)
    for name, module in model.named_modules():
        if getattr(module, "out_channels", None) == model.config.num_labels and f"{name}.weight" in ends:
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _processor(model_id: str, image_size: int | None, options: dict[str, Any]) -> Any:
    processor = AutoImageProcessor.from_pretrained(model_id, **options)
    if image_size is None:
        return processor
    if getattr(processor, "do_center_crop", False) or not hasattr(processor, "size"):
        raise ValueError(
            f"image_size cannot be set for the {type(processor).__name__} of {model_id}, which crops images: mend size "
            "and crop_size in its preprocessor_config.json."
        )
    size = {"height": image_size, "width": image_size}
    return AutoImageProcessor.from_pretrained(model_id, size=size, do_resize=True, **options)
