"""What becomes of a checkpoint's classification head: kept, or replaced by one for other classes."""

import logging
import re
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from hf_robust_ft.provenance.class_names import class_names

HEADS = ("auto", "new", "keep", "zero_shot")
_PRETRAINING_CLASSES = 1000  # ImageNet-1k, -12k, -21k and -22k heads; fine-tuned ones are smaller

logger = logging.getLogger(__name__)


def class_labels(label_names: Sequence[str] | None, num_labels: int | None) -> dict[str, Any]:
    """`num_labels`, `id2label` and `label2id` for a config; empty where no classes are given.

    Raises:
        ValueError: names and number that disagree, a name given twice, or fewer than two classes.
    """
    if label_names is not None:
        if num_labels not in (None, len(label_names)):
            raise ValueError(f"num_labels={num_labels} disagrees with the {len(label_names)} label_names.")
        num_labels = len(label_names)
    if num_labels is None:
        return {}
    if num_labels < 2:
        raise ValueError(f"A classifier needs at least 2 classes, got {num_labels}.")
    if label_names is None:
        return {"num_labels": num_labels}
    twice = sorted({name for name in label_names if list(label_names).count(name) > 1})
    if twice:
        raise ValueError(f"label_names must differ from one another; given more than once: {', '.join(twice[:5])}.")
    return {
        "num_labels": num_labels,
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: index for index, name in enumerate(label_names)},
    }


def replaces_head(head: str, known: Sequence[str], labels: dict[str, Any], model_id: str) -> bool:
    """Whether a head that knows the classes `known` gives way to a new one for `labels`.

    A head counts as one of pretraining when its classes have no names (LABEL_0, ...) or number 1000 and more
    (ImageNet); `auto` replaces such a head where the classes differ. A head fine-tuned to named classes is
    somebody's work: `auto` refuses to replace it.

    Raises:
        ValueError: `keep` and another number of classes; `auto` and a fine-tuned head for other classes; `new`
            without classes.
    """
    if not labels:
        if head == "new":
            raise ValueError("head='new' needs the classes: give label_names or num_labels.")
        return False
    wanted, count = labels["num_labels"], len(known)
    if head == "keep":
        if wanted != count:
            raise ValueError(
                f"head='keep', but the head of {model_id} has {count} classes and {wanted} were given. "
                "Give its own classes, or head='new'."
            )
        return False
    unnamed = all(re.fullmatch(r"LABEL_\d+", name) for name in known)
    names = labels.get("label2id")
    same = wanted == count and (names is None or unnamed or sorted(known) == sorted(names))
    if head == "auto" and same:
        return False
    if head == "auto" and not unnamed and count < _PRETRAINING_CLASSES:
        raise ValueError(
            f"{model_id} was fine-tuned to {count} classes ({_shortened(known)}), but {wanted} "
            f"{'others' if wanted == count else 'classes'} were given ({_shortened(names or [])}). Pass head='new' to "
            "replace its head by a new one, or head='keep' to keep it for the same number of classes."
        )
    return True


def config_for(
    labels: dict[str, Any], config: PreTrainedConfig, model_id: str, head: str, options: dict[str, Any]
) -> tuple[PreTrainedConfig, dict[str, Any], bool]:
    """A checkpoint's config with these classes, what of `labels` it was given, and whether the head gives way.

    A head that already knows the classes keeps its own order of them, so it is given none.

    Args:
        config: the checkpoint's own.
        options: of `from_pretrained`.

    Raises:
        ValueError: as `replaces_head`.
    """
    known = class_names(config)
    new_head = replaces_head(head, known, labels, model_id)
    if "label2id" in labels and sorted(known) == sorted(labels["label2id"]) and not new_head:
        labels = {}
    if labels:
        config = AutoConfig.from_pretrained(model_id, **labels, **options)
    return config, labels, new_head


def announce_new_head(model_id: str, replaced: int | None, labels: dict[str, Any]) -> None:
    """Say in the log that the head is new: instead of one for `replaced` classes, or of none (None)."""
    wanted = labels["num_labels"]
    if replaced is None:
        logger.warning("%s has no classification head: a new one for %d classes is trained.", model_id, wanted)
    else:
        logger.warning("The head of %s (%d classes) is replaced by a new one for %d.", model_id, replaced, wanted)


def _shortened(names: Sequence[str]) -> str:
    names = list(names)
    return ", ".join([*names[:4], "..."] if len(names) > 4 else names) or "without names"


def last_linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The last linear layers of an image classifier by name: one, or two for a distilled model.

    Raises:
        ValueError: none is found.
    """
    inner = getattr(model, "timm_model", None)
    if inner is not None:
        layers = inner.get_classifier()
        layers = layers if isinstance(layers, tuple) else (layers,)
        found = {name: module for name, module in model.named_modules() if any(module is layer for layer in layers)}
    else:
        found = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, (nn.Linear, nn.Conv2d))
            and model.config.num_labels in (getattr(module, "out_features", 0), getattr(module, "out_channels", 0))
            and re.match(r"\w*classifier|(head|fc|score)(\.|$)", name)
        }
    if not found:
        raise ValueError(f"{type(model).__name__} has no linear classification head. Use an image classifier.")
    return found


def head_parameter_names(model: nn.Module) -> set[str]:
    """Names of the parameters that map features to classes; every other one belongs to the backbone."""
    layers = last_linear_layers(model).items()
    return {f"{name}.{entry}" for name, module in layers for entry, _ in module.named_parameters()}


def reinitialise_head(model: PreTrainedModel) -> None:
    """Draw new head weights N(0, `initializer_range`) and zero biases from the global generator."""
    std = getattr(model.config, "initializer_range", 0.02)
    for module in last_linear_layers(model).values():
        nn.init.normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
