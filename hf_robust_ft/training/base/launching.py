"""Whether the processes that a launcher started train together, and sharded as asked."""

import json
import os
from typing import Any

from accelerate.utils import is_deepspeed_available
from transformers import TrainingArguments

ZERO_3_REFUSED = (
    "DeepSpeed ZeRO-3 partitions the parameters that the attack differentiates through, and is not verified with "
    "adversarial training. Use ZeRO stage 1 or 2, or FSDP."
)


def check_launch(args: TrainingArguments) -> None:
    """Raise where torchrun or accelerate launch started several processes that would each train alone.

    Without a GPU, Trainer lets them work together only with `use_cpu`; else each would spend the whole run's compute
    and write over the others' files.

    Raises:
        ValueError: they would, or a rank may get fewer batches than the others, which these then wait for.
    """
    started = int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1
    if started != args.world_size:
        raise ValueError(
            f"The launcher started {started} processes, and training sees {args.world_size}: on a machine without GPUs "
            "give use_cpu=True (--use_cpu on a command line)."
        )
    if args.world_size > 1 and args.accelerator_config.even_batches is False:
        raise ValueError(
            "accelerator_config={'even_batches': False} leaves some of the processes without a last batch, and the "
            "others waiting for them in the attack. Leave it out: evaluation drops the images that are repeated."
        )


def check_sharding(args: TrainingArguments, is_fsdp_enabled: bool) -> None:
    """Raise where FSDP is asked for, by the arguments or `accelerate launch`, and the Trainer goes without.

    Raises:
        ValueError: accelerate ignores FSDP where there is no GPU.
    """
    asked = args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if asked and not is_fsdp_enabled:
        raise ValueError(
            "FSDP is asked for, and accelerate ignores it where there is no GPU: every process would hold the whole "
            "model, as under DDP. Leave fsdp out here."
        )


def check_fp16(mixed_precision: str, device_type: str) -> None:
    """Raise where accelerate would train in float32 although fp16 is asked for, and the report would say fp16.

    Args:
        mixed_precision: accelerate's: "no", "bf16" or "fp16".
        device_type: of the device that trains.

    Raises:
        ValueError: fp16 on a CPU.
    """
    if mixed_precision == "fp16" and device_type == "cpu":
        raise ValueError(
            "fp16 is asked for, and accelerate ignores it on a CPU: training would be in float32. Leave fp16 out, or "
            "give bf16."
        )


def refuse_zero_3(deepspeed: dict | str | None) -> None:
    """Raise where DeepSpeed's configuration, of the arguments or of `accelerate launch`, says ZeRO stage 3.

    Args:
        deepspeed: of the arguments: the configuration, as a dict or as JSON, or its file.

    Raises:
        ValueError: it does.
    """
    stages = [_zero_stage(deepspeed)]
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        stages += [os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE")]
        stages += [_zero_stage(os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE"))]
    if "3" in map(str, stages):
        raise ValueError(ZERO_3_REFUSED)


def check_deepspeed(deepspeed: dict | str | None) -> None:
    """Raise where the arguments ask for DeepSpeed and it is not there.

    Raises:
        ImportError: it is not installed.
    """
    if deepspeed and not is_deepspeed_available():
        raise ImportError('DeepSpeed is not installed: pip install "hf_robust_ft[deepspeed]", or leave deepspeed out.')


def _zero_stage(config: Any) -> Any:
    if isinstance(config, str) and config.startswith("{"):
        config = json.loads(config)
    elif isinstance(config, str) and os.path.isfile(config):
        with open(config, encoding="utf-8") as file:
            config = json.load(file)
    zero = config.get("zero_optimization") if isinstance(config, dict) else None
    return zero.get("stage") if isinstance(zero, dict) else None
