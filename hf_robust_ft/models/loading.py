"""A Hub id, a local folder or the embedded model -> a plain transformers classifier and its image processor."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel

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
            from the checkpoint's.
        num_labels: their number, when they have no names.
        image_size: input size in pixels of the embedded model (default 224); other checkpoints keep their
            processor's.
        seed: of a new head; the global random state is left alone.
        from_pretrained: passed to `from_pretrained` (`revision`, `token`, `dtype`, `trust_remote_code`, ...).

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

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if model_id in EMBEDDED_MODELS:
            if from_pretrained:
                raise ValueError(f"{model_id} is embedded and takes no {sorted(from_pretrained)}.")
            return EMBEDDED_MODELS[model_id](image_size=image_size or 224, **labels)
        if image_size is not None:
            raise ValueError(f"image_size is for the embedded model; {model_id} keeps its own image processor's size.")
        model = AutoModelForImageClassification.from_pretrained(
            model_id, ignore_mismatched_sizes=bool(labels), **labels, **from_pretrained
        )
    from_pretrained.pop("dtype", None)
    return model, AutoImageProcessor.from_pretrained(model_id, **from_pretrained)
