"""A Hub id, a folder or a short name -> a plain transformers detection model and its image processor; experimental."""

import logging
from collections.abc import Sequence, Set
from typing import Any

from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModelForObjectDetection,
    PreTrainedModel,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrImageProcessor,
    TimmBackboneConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES

from hf_robust_ft.models.dense_loading import (
    DenseTask,
    imagenet_features,
    load_dense_model,
    refuse_missing,
    settle_batch_norm,
    take_features,
)
from hf_robust_ft.models.efficientnet_lite import EfficientNetLite
from hf_robust_ft.models.heads import class_labels

STAGES, WIDTH, HEADS_OF_ATTENTION, QUERIES = (1, 2), 96, 3, 20  # stride 4 and 8: images of 64 pixels, few objects

logger = logging.getLogger(__name__)


def detects(model_id: str, revision: str | None = None) -> bool:
    """Whether a checkpoint's config names a model for object detection; not where no config is to be had."""
    return TASK.is_stated_by(model_id, revision)


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
    labels = class_labels(label_names, num_labels)
    return load_dense_model(TASK, model_id, labels, image_size, seed, head, from_pretrained)


def _embedded(
    spec: EfficientNetLite, labels: dict[str, Any], image_size: int | None
) -> tuple[PreTrainedModel, RTDetrImageProcessor]:
    """ImageNet features under a small RT-DETR, all of it transformers' own classes."""
    whole = imagenet_features(spec)
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
    take_features(next(module for module in model.modules() if hasattr(module, "feature_info")), whole)
    named = model.named_modules()
    settle_batch_norm(
        model, [each for name, each in named if "backbone" not in name and isinstance(each, nn.BatchNorm2d)]
    )
    template, side = whole.pretrained_cfg, image_size or spec.image_size
    processor = RTDetrImageProcessor(
        size={"height": side, "width": side},
        do_normalize=True,
        image_mean=list(template["mean"]),
        image_std=list(template["std"]),
    )
    return model.eval(), processor


def _finish(
    model: PreTrainedModel, drawn: Set[str], labels: dict[str, Any], head: str, new_head: bool, model_id: str
) -> None:
    if not labels:
        refuse_missing(model, drawn, model_id)
    elif drawn:
        logger.warning("%s: %d tensors of the detection head are new, for %d classes.", model_id, len(drawn),
                       labels["num_labels"])  # fmt: skip
    elif new_head:
        _redraw_classifiers(model)
        logger.warning("The classes of %s are replaced by %d new ones.", model_id, labels["num_labels"])


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


TASK = DenseTask(
    "detection",
    "object detection",
    "object-detection",
    AutoModelForObjectDetection,
    MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
    "hustvl/yolos-tiny, PekingU/rtdetr_r18vd",
    _embedded,
    _finish,
    _processor,
)
