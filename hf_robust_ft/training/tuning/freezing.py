"""Training a part of the weights only."""

from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from hf_robust_ft.training.tuning.parts import head_parameters, layer_numbers


def parse_freeze(freeze: str) -> str | int | list[str] | None:
    """What `freeze` asks for: None, "backbone", a number of stages, or patterns of parameter names.

    Raises:
        ValueError: a number below 1, or an empty pattern.
    """
    if freeze == "none":
        return None
    if freeze == "backbone":
        return freeze
    if freeze.lstrip("-").isdigit():
        if int(freeze) < 1:
            raise ValueError(f"freeze={freeze} must be at least 1 stage. To freeze nothing, set freeze='none'.")
        return int(freeze)
    patterns = [pattern.strip() for pattern in freeze.split(",")]
    if not all(patterns):
        raise ValueError(
            f"freeze={freeze!r} holds an empty pattern. Valid: none, backbone, a number of stages, or patterns of "
            "parameter names separated by commas, e.g. '*.embeddings.*,*.layers.0.*'."
        )
    return patterns


def freeze_parameters(model: nn.Module, freeze: str) -> None:
    """Turn off the gradients of what `freeze` names.

    Args:
        freeze: "backbone" (all but the head: linear probing), a number N (the stem and the first N stages of a
            ResNet, ConvNeXt or Swin, or blocks of a ViT), or shell patterns of parameter names separated by commas.

    Raises:
        ValueError: more stages than the model has, a pattern that matches nothing, or nothing left to train.
    """
    wanted = parse_freeze(freeze)
    names = [name for name, _ in model.named_parameters()]
    if wanted is None:
        return
    if wanted == "backbone":
        frozen = set(names) - head_parameters(model)
    elif isinstance(wanted, int):
        numbers = layer_numbers(model, by_stage=True)
        stages = max(numbers.values()) - 1
        if wanted > stages:
            raise ValueError(
                f"freeze={wanted}, but {type(model).__name__} has {stages} stages. Freeze fewer, or freeze='backbone'."
            )
        frozen = {name for name, number in numbers.items() if number <= wanted}
    else:
        frozen = set()
        for pattern in wanted:
            matched = {name for name in names if fnmatchcase(name, pattern)}
            if not matched:
                raise ValueError(
                    f"freeze: {pattern!r} matches no parameter of {type(model).__name__}. Valid: none, backbone, a "
                    f"number of stages, or patterns of its parameters' names, which are {names[0]}, {names[1]}, ..., "
                    f"{names[-1]}."
                )
            frozen |= matched
    if frozen == set(names):
        raise ValueError(f"freeze={freeze!r} leaves no parameter to train.")
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)


def still_modules(model: nn.Module) -> list[nn.Module]:
    """The parts of a model that `freeze` keeps in evaluation mode in training: no dropout, no drop path, no statistics.

    Every module whose parameters are all frozen. One without parameters goes by the smallest module around it that has
    some; where that is partly trained, it stands still if it comes before a frozen layer and after no trained one, in
    order of registration (the dropout behind a ViT's position embedding does, the one in front of its head does not).
    Of nested modules the outermost.
    """
    still: list[nn.Module] = []
    inside: str | None = None
    leading = _last_leading_frozen(model)
    for number, (name, module) in enumerate(model.named_modules()):
        if inside is not None and name.startswith(inside):
            continue
        gradients = [parameter.requires_grad for parameter in module.parameters()]
        if (gradients and not any(gradients)) or (not gradients and number < leading):
            still.append(module)
            inside = f"{name}."
    return still


def _last_leading_frozen(model: nn.Module) -> int:
    """The place of the last module with frozen parameters of its own before any with trained ones; -1 without one."""
    last = -1
    for number, module in enumerate(model.modules()):
        gradients = [parameter.requires_grad for parameter in module.parameters(recurse=False)]
        if any(gradients):
            break
        if gradients:
            last = number
    return last


def frozen_norms(model: nn.Module) -> list[nn.Module]:
    """The norm layers with running statistics (BatchNorm) whose weights are frozen, as LoRA freezes them.

    They must stay in evaluation mode in training: else their statistics move with every batch, and what was to be
    kept is not; dropout and drop path stay on, as in training the whole. One without weights goes by the smallest
    module around it that has some.
    """

    def is_frozen(name: str) -> bool:
        while True:
            gradients = [parameter.requires_grad for parameter in model.get_submodule(name).parameters()]
            if gradients or not name:
                return bool(gradients) and not any(gradients)
            name = name.rpartition(".")[0]

    return [module for name, module in model.named_modules() if isinstance(module, _NormBase) and is_frozen(name)]
