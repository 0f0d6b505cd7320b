"""A model made ready for training as `TuningArguments` say: partly frozen, or with LoRA adapters."""

from torch import nn

from hf_robust_ft.training.base.wrapped_models import without_wrappers
from hf_robust_ft.training.tuning.arguments import TuningArguments
from hf_robust_ft.training.tuning.freezing import freeze_parameters
from hf_robust_ft.training.tuning.lora import add_lora


def adapted(model: nn.Module, args: TuningArguments) -> nn.Module:
    """The model, out of a user's wrappers, with what `freeze` names frozen, or a `PeftModel` of it with `lora_rank`.

    Raises:
        ValueError: settings that the model cannot follow.
    """
    # DataParallel's copies of a module compiled in place would all run the first; with torch_compile, Trainer compiles.
    model = without_wrappers(model, compiles=not args.torch_compile and args.n_gpu <= 1)
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
