"""A Hub id, a folder or a short name -> a plain transformers segmentation model and its image processor."""

import logging
from collections.abc import Sequence, Set
from typing import Any

from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    PreTrainedModel,
    SegformerImageProcessor,
    TimmBackboneConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

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

STAGES = [1, 2, 3]  # of EfficientNet-Lite: maps of stride 4, 8 and 16
WIDTH = 48  # channels of the embedded model's head

logger = logging.getLogger(__name__)


def segments(model_id: str, revision: str | None = None) -> bool:
    """Whether a checkpoint's config names a model for semantic segmentation; not where no config is to be had."""
    return TASK.is_stated_by(model_id, revision)


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
    labels = class_labels(label_names, num_labels)
    return load_dense_model(TASK, model_id, labels, image_size, seed, head, from_pretrained)


def head_names(model: PreTrainedModel) -> set[str]:
    """Names of all parameters and buffers that are none of the encoder's: decoder, classifier, auxiliary head."""
    encoder = tuple(f"{name}." for name in {model.base_model_prefix, "backbone"} if hasattr(model, name or "?"))
    return {name for name in model.state_dict() if not name.startswith(encoder)}


def _embedded(
    spec: EfficientNetLite, labels: dict[str, Any], image_size: int | None
) -> tuple[PreTrainedModel, SegformerImageProcessor]:
    """ImageNet features under a UperNet head, all of it transformers' own classes."""
    whole, model = imagenet_features(spec), embedded_architecture(spec, labels)
    take_features(model.backbone._backbone, whole)
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
    """A decoder whose activations keep their scale (transformers draws weights with std 0.02)."""
    head = model.decode_head
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    nn.init.normal_(head.classifier.weight, std=0.01)
    settle_batch_norm(model, head.modules())


def _finish(
    model: PreTrainedModel, drawn: Set[str], labels: dict[str, Any], head: str, new_head: bool, model_id: str
) -> None:
    ends = head_names(model)
    refuse_missing(model, drawn - ends, model_id)
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


TASK = DenseTask(
    "segmentation",
    "semantic segmentation",
    "image-segmentation",
    AutoModelForSemanticSegmentation,
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
    "nvidia/mit-b0, openmmlab/upernet-swin-tiny",
    _embedded,
    _finish,
    _processor,
)
