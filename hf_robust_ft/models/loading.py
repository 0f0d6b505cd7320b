"""A Hub id, a local folder or the embedded model -> a plain transformers classifier and its image processor."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel

from hf_robust_ft.models.efficientnet_lite import load_efficientnet_lite0

EMBEDDED_MODELS = {"efficientnet_lite0": load_efficientnet_lite0}


def load_image_classifier(
    model_id: str,
    *,
    label_names: Sequence[str] | None = None,
    num_labels: int | None = None,
    image_size: int | None = None,
    seed: int = 0,
    **from_pretrained: Any,
) -> tuple[PreTrainedModel, Any]:
    """Load a pretrained classifier with a head for the given classes, and its image processor.

    Args:
        model_id: any `AutoModelForImageClassification` id or local folder (timm ids included: `timm/...`), or
            `efficientnet_lite0`, whose ImageNet weights come from a package of the extra `demo`.
        label_names: the classes, which become `id2label`; the head is re-initialised where their number differs
            from the checkpoint's. A checkpoint with the same classes in another order keeps its own order.
        num_labels: their number, when they have no names.
        image_size: input size in pixels of the embedded model (default 224); other checkpoints keep their
            processor's.
        seed: of a new head; the global random state is left alone.
        from_pretrained: passed to `from_pretrained` (`revision`, `token`, `trust_remote_code`, ...); `dtype` is
            float32 unless given, whatever the checkpoint was stored in.

    Raises:
        ValueError: names and number that disagree, fewer than two classes, or an option the model does not take.
    """
    if label_names is not None:
        if num_labels not in (None, len(label_names)):
            raise ValueError(f"num_labels={num_labels} disagrees with the {len(label_names)} label_names.")
        num_labels = len(label_names)
    if num_labels is not None and num_labels < 2:
        raise ValueError(f"A classifier needs at least 2 classes, got {num_labels}.")
    labels = {} if num_labels is None else {"num_labels": num_labels}
    if label_names is not None:
        labels["id2label"] = dict(enumerate(label_names))
        labels["label2id"] = {name: index for index, name in enumerate(label_names)}

    model_id = os.path.expanduser(model_id)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if model_id in EMBEDDED_MODELS:
            if from_pretrained:
                raise ValueError(f"{model_id} is embedded and takes no {sorted(from_pretrained)}.")
            return EMBEDDED_MODELS[model_id](image_size=image_size or 224, **labels)
        if model_id.startswith((".", "/", "~")) and not os.path.isdir(model_id):
            raise ValueError(f"{model_id} is not a folder. Give a checkpoint folder or a Hub model id.")
        if image_size is not None:
            raise ValueError(f"image_size is for the embedded model; {model_id} keeps its own image processor's size.")
        dtype = from_pretrained.pop("dtype", torch.float32)
        labels = _keep_known_order(model_id, labels, from_pretrained)
        model = AutoModelForImageClassification.from_pretrained(
            model_id, ignore_mismatched_sizes=bool(labels), dtype=dtype, **labels, **from_pretrained
        )
    return model, AutoImageProcessor.from_pretrained(model_id, **from_pretrained)


def _keep_known_order(model_id: str, labels: dict[str, Any], from_pretrained: dict[str, Any]) -> dict[str, Any]:
    """Nothing to change on a head that already knows these classes, in whatever order."""
    if "id2label" not in labels:
        return labels
    config = AutoConfig.from_pretrained(model_id, **from_pretrained)
    known = list((config.id2label or {}).values())
    return {} if sorted(known) == sorted(labels["label2id"]) else labels
