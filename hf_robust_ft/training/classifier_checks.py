"""What a classifier needs to be trained on one class an image."""

import inspect

from torch import nn

from hf_robust_ft.attacks.batch_checks import SEVERAL_LABELS


def check_own_loss(model: nn.Module, has_loss_func: bool) -> None:
    """Raise for a model of transformers that has no loss of its own, or one of several labels an image."""
    if has_loss_func or not type(model).__module__.startswith("transformers."):
        return
    if getattr(model.config, "problem_type", None) == "multi_label_classification":
        raise ValueError(f"{SEVERAL_LABELS} The model's config says problem_type='multi_label_classification'.")
    takes = inspect.signature(model.forward).parameters
    if not any("labels" in name for name in takes):
        name = type(model).__name__
        raise ValueError(
            f"{name} takes no labels and computes no loss: it cannot be trained. Load "
            f"{name.removesuffix('WithTeacher')} (AutoModelForImageClassification does), or give compute_loss_func."
        )
