"""A model made ready for training as `TuningArguments` say: partly frozen, or with LoRA adapters."""

from torch import nn

from hf_robust_ft.tuning.arguments import TuningArguments
from hf_robust_ft.tuning.freezing import freeze_parameters
from hf_robust_ft.tuning.lora import add_lora


def adapted(model: nn.Module, args: TuningArguments) -> nn.Module:
    """The model with what `freeze` names frozen, or as a `PeftModel` with adapters of `lora_rank`.

    Raises:
        ValueError: settings that the model cannot follow.
    """
    freeze_parameters(model, args.freeze)
    if args.lora_rank is None:
        return model
    return add_lora(
        model,
        rank=args.lora_rank,
        alpha=args.lora_alpha,
        dropout=args.lora_dropout,
        targets=args.lora_targets,
        seed=args.seed,
    )
