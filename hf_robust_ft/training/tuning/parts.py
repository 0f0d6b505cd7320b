"""Which parameters of a classifier, segmenter or detector are its head, and how deep each of the others lies."""

import re

from timm.models import group_parameters
from torch import nn
from transformers import PreTrainedModel

from hf_robust_ft.training.objectives.hidden import CHILDREN

# Of transformers' backbones: `layers.3`, `stages.0.layers.2`, `layers.1.blocks.0` (stage and block), `blocks.7`, ...
BLOCK = re.compile(r"(?:^|\.)(?:layers?|stages|blocks|resblocks)\.(\d+)(?:\.(?:layers|blocks)\.(\d+))?(?=\.)")


def head_modules(model: nn.Module) -> list[str]:
    """Names of the modules that turn features into logits (two for a distilled DeiT); of DETR's kind, all behind the
    backbone.

    Raises:
        ValueError: they cannot be told from the rest.
    """
    timm_model = getattr(model, "timm_model", None)
    if timm_model is not None:
        heads = timm_model.get_classifier()
        heads = heads if isinstance(heads, tuple) else (heads,)
        named = [(f"timm_model.{name}", module) for name, module in timm_model.named_modules() if module in heads]
    elif isinstance(model, PreTrainedModel) and _is_detr(base := model.base_model):
        named = [(name, module) for name, module in model.named_children() if module is not base]
        named += [(f"{model.base_model_prefix}.{name}", module) for name, module in base.named_children()
                  if module is not base.backbone]  # fmt: skip
    elif isinstance(model, PreTrainedModel) and (backbone := _backbone(model)) is not None:
        named = [(name, module) for name, module in model.named_children() if module is not backbone]
    else:
        named = [(name, module) for name, module in model.named_children() if name in ("classifier", "head", "fc")]
    hidden = getattr(model, CHILDREN, ())
    names = [name for name, module in named if next(module.parameters(), None) is not None and name not in hidden]
    if not names:
        raise ValueError(
            f"The classification head of {type(model).__name__} cannot be told from its backbone. "
            "Load the model with AutoModelForImageClassification, AutoModelForSemanticSegmentation or "
            "AutoModelForObjectDetection."
        )
    return names


def _is_detr(base: nn.Module) -> bool:
    """Whether a base model holds its backbone beside a decoder of object queries, as DETR and those after it do."""
    return isinstance(getattr(base, "backbone", None), nn.Module) and isinstance(
        getattr(base, "decoder", None), nn.Module
    )


def _backbone(model: PreTrainedModel) -> nn.Module | None:
    """Of UperNet and its like, whose base model is the whole, what it calls so."""
    return getattr(model, "backbone", None) if model.base_model is model else model.base_model


def head_parameters(model: nn.Module) -> set[str]:
    """Names of the head's parameters; of a PEFT model, those of the head it trains in full."""
    names = _own_parameters(model)
    if hasattr(model, "peft_config"):
        return {name for name in names if ".modules_to_save." in name}
    return {name for name in names if name.startswith(tuple(f"{module}." for module in head_modules(model)))}


def _own_parameters(model: nn.Module) -> list[str]:
    """Names of a model's parameters but those of modules hidden in the model itself, as a teacher is.

    One hidden within a layer, as a BatchNorm's twin is, trains with the layer and lies as deep.
    """
    hidden = tuple(f"{name}." for name in getattr(model, CHILDREN, ()))
    return [name for name, _ in model.named_parameters() if not name.startswith(hidden)]


def layer_numbers(model: nn.Module, *, by_stage: bool = False) -> dict[str, int]:
    """The depth of every parameter: 0 is the stem (patch embedding, tokens), the largest number is the head.

    timm models say so themselves (`group_matcher`); in transformers models it stands in the names. What follows the
    last block (a norm, a final convolution) counts with that block, a stage's downsampling with the block of its
    stage next to it.

    Args:
        by_stage: count the stages of a Swin, ConvNeXt or ResNet instead of their blocks.

    Raises:
        ValueError: a model whose blocks cannot be told.
    """
    head = head_parameters(model)
    timm_model = getattr(model, "timm_model", None)
    numbers = _numbers_of_timm(timm_model, by_stage) if timm_model is not None else _numbers_by_name(model, by_stage)
    if not numbers or len({number for name, number in numbers.items() if name not in head}) < 2:
        raise ValueError(
            f"The depth of {type(model).__name__}'s layers cannot be told: it is neither a timm model with a "
            "group_matcher nor a transformers model with numbered layers, stages or blocks. Leave layer_decay unset, "
            "and freeze by names (freeze='embeddings.*,...')."
        )
    first_of_head = min(numbers[name] for name in head)
    # A norm that timm counts with the head belongs to the backbone here: the head alone is what is new.
    backbone = {name: min(number, first_of_head - 1) for name, number in numbers.items() if name not in head}
    return {**backbone, **dict.fromkeys(head, max(backbone.values()) + 1)}


def _numbers_of_timm(timm_model: nn.Module, by_stage: bool) -> dict[str, int] | None:
    if not hasattr(timm_model, "group_matcher"):
        return None
    numbers = group_parameters(timm_model, timm_model.group_matcher(coarse=by_stage), reverse=True)
    return {f"timm_model.{name}": number for name, number in numbers.items()}


def _numbers_by_name(model: nn.Module, by_stage: bool) -> dict[str, int]:
    """Depths in order of registration, which in transformers is the order of computation."""
    head = head_parameters(model)
    names = _own_parameters(model)
    places = {name: match.groups() for name in names if name not in head and (match := BLOCK.search(name))}
    in_blocks = set() if by_stage else {stage for stage, block in places.values() if block is not None}
    numbers: dict[str, int] = {}
    current, number = (None, None), 0
    for name in names:
        stage, block = places.get(name, current)
        if by_stage:
            block = None
        if block is not None or stage not in in_blocks:
            if (stage, block) != current:
                current, number = (stage, block), number + 1
            numbers[name] = number
        else:  # a stage's own layer, registered before its blocks (ConvNeXt) or after them (Swin)
            numbers[name] = number + (stage != current[0])
    return numbers | dict.fromkeys(head, number + 1)
