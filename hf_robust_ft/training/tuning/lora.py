"""Low-rank adapters (arXiv 2106.09685) through peft, on any of our classifiers, and their merged form."""

import copy
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from hf_robust_ft.training.tuning.parts import head_modules

# The first set found whole in a model is the default: attention's query and value, else ConvNeXt's two dense layers.
DEFAULT_TARGETS = (("q_proj", "v_proj"), ("query", "value"), ("qkv",), ("pwconv1", "pwconv2"), ("mlp.fc1", "mlp.fc2"))


def add_lora(
    model: PreTrainedModel,
    *,
    rank: int,
    alpha: float | None = None,
    dropout: float = 0.0,
    targets: Sequence[str] | None = None,
    seed: int = 0,
) -> nn.Module:
    """The model as a `PeftModel` that trains its head in full and low-rank updates of other layers.

    Args:
        rank: of the updates.
        alpha: updates are scaled by alpha / rank; None for alpha = rank.
        dropout: in front of the adapters.
        targets: ends of the names of the linear or convolutional layers to adapt (`q_proj`); None for the
            architecture's usual ones.
        seed: of the adapters' initial weights; the global random state is left alone.

    Raises:
        ImportError: peft is not installed.
        ValueError: the model has adapters already, no usual layers to adapt, or none of the given ones.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ImportError("lora_rank needs peft: pip install 'hf_robust_ft[lora]'.") from None
    if hasattr(model, "peft_config"):
        raise ValueError("The model has PEFT adapters already: leave lora_rank unset, or pass the plain model.")
    head = head_modules(model)
    config = LoraConfig(
        r=rank,
        lora_alpha=rank if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules=_adapted_modules(model, targets, head),
        modules_to_save=head,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def merged(model: nn.Module) -> PreTrainedModel:
    """A plain copy of a `PeftModel` with its adapters added to the weights; the original trains on unchanged."""
    return copy.deepcopy(model).merge_and_unload()


def check_adapters(folder: str | Path, model: nn.Module) -> None:
    """Raise unless a checkpoint holds just this model's adapters and head: peft only warns of others.

    Raises:
        RuntimeError: it lacks some, or holds others.
    """
    from peft import get_peft_model_state_dict

    path = Path(folder) / "adapter_model.safetensors"
    if not path.is_file():
        raise RuntimeError(f"{folder} holds no adapters: it was trained without lora_rank.")
    with safe_open(path, "pt") as file:
        different = set(file.keys()) ^ get_peft_model_state_dict(model).keys()
    if different:
        raise RuntimeError(f"{path} does not hold this model's adapters (lora_targets?): {sorted(different)[:3]}, ...")


def _adapted_modules(model: nn.Module, targets: Sequence[str] | None, head: list[str]) -> list[str]:
    """Full names: peft would match a short one in the head too."""
    candidates = [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and not f"{name}.".startswith(tuple(f"{part}." for part in head))
    ]

    def matches(target: str) -> list[str]:
        return [name for name in candidates if f".{name}".endswith(f".{target}")]

    if targets is None:
        targets = next((names for names in DEFAULT_TARGETS if all(map(matches, names))), ())
        if not targets:
            raise ValueError(
                f"There is no usual choice of layers to adapt in {type(model).__name__}: set lora_targets to some of "
                f"{_counted(candidates)}."
            )
    unknown = [target for target in targets if not matches(target)]
    if unknown:
        raise ValueError(
            f"lora_targets {', '.join(unknown)} match no layer of {type(model).__name__}. It has "
            f"{_counted(candidates)}."
        )
    return sorted({name for target in targets for name in matches(target)})


def _counted(names: list[str]) -> str:
    """The last parts of layer names, each with how often it occurs."""
    ends = Counter(next(part for part in reversed(name.split(".")) if not part.isdigit()) for name in names)
    return ", ".join(f"{end} ({count} layers)" for end, count in ends.items())
