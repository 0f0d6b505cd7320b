"""The optimizer's parameter groups: learning rates of head and layers, and what weight decay spares."""

from typing import Any

from torch import nn

from hf_robust_ft.training.tuning.parts import head_parameters, layer_numbers


def spared_by_decay(model: nn.Module) -> set[str]:
    """Names of the parameters that weight decay should leave alone whatever they are called.

    Those are the scales and biases (every parameter of at most one dimension: of any norm layer, layer scales) and
    what a timm model declares itself (`no_weight_decay`: tokens, position embeddings). Trainer goes by class and name
    instead, and so decays BatchNorm's scales, `normalization.weight`, `layer_scale_parameter`, ...
    """
    names = {name for name, parameter in model.named_parameters() if parameter.ndim <= 1}
    for prefix, module in model.named_modules():
        declare = getattr(module, "no_weight_decay", None)
        if callable(declare):
            names |= {f"{prefix}.{name}".lstrip(".") for name in declare()}
    return names


def parameter_groups(
    model: nn.Module,
    decayed: set[str],
    *,
    learning_rate: float,
    weight_decay: float,
    head_learning_rate: float | None = None,
    layer_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer: each trainable parameter stands in exactly one.

    The head learns at `head_learning_rate`, or at `learning_rate` without one; a backbone layer that lies d layers
    below the head at `learning_rate * layer_decay**d` (BEiT, arXiv 2106.08254; timm's `param_groups_layer_decay`).

    Args:
        decayed: names of the parameters that decay by `weight_decay`.
        layer_decay: factor per layer in (0, 1]; None is 1, and then the model's depth need not be known.

    Returns:
        First the group whose rate is closest to `learning_rate`: Trainer logs the first group's.

    Raises:
        ValueError: the head, or with `layer_decay` the depth, cannot be told.
    """
    head = head_parameters(model)
    depths = layer_numbers(model) if layer_decay is not None else {}
    top = max(depths.values(), default=0)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name in head:
            rate = learning_rate if head_learning_rate is None else head_learning_rate
        else:
            rate = learning_rate * (1.0 if layer_decay is None else layer_decay ** (top - depths[name]))
        groups.setdefault((rate, weight_decay if name in decayed else 0.0), []).append(parameter)
    ordered = sorted(groups.items(), key=lambda item: (abs(item[0][0] - learning_rate), item[0]))
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in ordered]
