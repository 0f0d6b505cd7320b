"""What half precision may do: models that train in it unasked, inputs that leave the ball, gradients that are lost."""

import logging
from collections import Counter

import torch
from torch import Tensor, nn

from hf_robust_ft.attacks import GradientMeter
from hf_robust_ft.attacks.pixels import PixelSpace
from hf_robust_ft.attacks.threat_model import ThreatModel, format_eps

logger = logging.getLogger(__name__)

TOLERATED = 0.01  # share of the gradients that may be lost without a warning
# Of gradients that are lost, by the precision they are lost in.
CURES = {
    "fp16": "Train in bf16 or fp32.",
    "bf16": "Train in fp32.",
    "no": "In fp32 they are the model's own: look for rounding in it, for units that are off, or for logits so far "
    "apart that the loss no longer changes (then take a lower learning rate, or let eps rise earlier).",
}


SHORT_NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16"}


def half_of(model: nn.Module) -> str | None:
    """The precision below float32 that most such parameters of a model have ("fp16", "bf16"); None without any."""
    counts = Counter(parameter.dtype for parameter in model.parameters() if _is_half(parameter.dtype))
    if not counts:
        return None
    dtype = counts.most_common(1)[0][0]
    return SHORT_NAMES.get(dtype, str(dtype).removeprefix("torch."))


def _is_half(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point and torch.finfo(dtype).eps > torch.finfo(torch.float32).eps


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What the caller's autocast makes of forwards there; None without one."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


def check_parameter_precision(model: nn.Module) -> None:
    """Raise a ValueError if a parameter of a model to be trained is stored in less than float32, frozen or not.

    transformers 5 loads a checkpoint in the dtype it was stored in, and nobody need have asked for it.
    """
    dtypes = [parameter.dtype for parameter in model.parameters()]
    half = Counter(str(dtype).removeprefix("torch.") for dtype in dtypes if _is_half(dtype))
    if half:
        found = ", ".join(f"{count} of {len(dtypes)} in {name}" for name, count in half.most_common())
        raise ValueError(
            f"The model's parameters are stored in half precision ({found}), in which small updates are lost and "
            "attacks are weaker. Load it with from_pretrained(..., dtype=torch.float32), or call model.float() before "
            "training; for speed set bf16=True, which keeps the weights in float32. (Evaluation takes it as it is.)"
        )


def evaluated_in(model: nn.Module, autocast: str | None = None, warn: bool = True) -> dict[str, str]:
    """`evaluated_in` for a report's metadata, where attacks run in half precision and are weaker; else nothing.

    Args:
        autocast: "bf16" or "fp16", where forwards are cast to it; a model stored in half precision goes before.
        warn: also log it.
    """
    precision = half_of(model) or autocast
    if precision is None:
        return {}
    if warn:
        logger.warning(
            "Measured in %s: attacks find fewer errors than in fp32, so robust accuracy may be points too high. "
            "For the figure in fp32 run hf-robust-ft evaluate on the saved model%s.",
            precision,
            ", or evaluate model.float()" if half_of(model) else "",
        )
    return {"evaluated_in": precision}


def check_input_precision(pixel_values: Tensor, pixel_space: PixelSpace, threat_model: ThreatModel) -> None:
    """Raise where `pixel_values` are rounded so coarsely that adversarial ones would leave the ball.

    An attack's result is float32 and inside the ball; training casts it to the dtype of the batch it came from.
    Within the model, autocast may round as it likes: the attack goes through the same rounding.

    Raises:
        ValueError: a dtype of less precision than float32.
    """
    if torch.finfo(pixel_values.dtype).eps <= torch.finfo(torch.float32).eps or threat_model.eps == 0:
        return
    moved = pixel_space.rounding(pixel_values.dtype)
    raise ValueError(
        f"pixel_values are {str(pixel_values.dtype).removeprefix('torch.')}, whose rounding moves a pixel by up to "
        f"{255 * moved:.2g}/255: adversarial images would leave the ball of eps={format_eps(threat_model.eps)}. Keep "
        "them float32, in the transform and data collator: bf16 and fp16 training casts inside the model. (DeepSpeed "
        "casts the images when its own configuration enables bf16 or fp16: leave it in fp32, or use FSDP.)"
    )


class GradientReport:
    """Measures the training attack until the first log after it began, and reports once what it lost."""

    def __init__(self):
        self._meter: GradientMeter | None = GradientMeter()

    def metered(self, logits_fn):
        """The function to attack."""
        return logits_fn if self._meter is None else self._meter(logits_fn)

    def once(self, precision: str) -> dict[str, float]:
        """Figures for the log, of this process; none if no attack ran yet, or they were told.

        Args:
            precision: "no" (float32), "bf16" or "fp16"; only in these is a warning due to entries that are zero, which
                in float32 are the model's own, e.g. of pixels it does not look at.
        """
        lost = None if self._meter is None else self._meter.read()
        if lost is None:
            return {}
        self._meter = None
        gone = lost.unusable if precision == "no" else max(lost.unusable, lost.zero + lost.nonfinite)
        if gone > TOLERATED:
            logger.warning(
                "%.1f %% of the input gradients that the training attack follows are zero, NaN or infinite (precision: "
                "%s; images without any: %.1f %%): the attack is weaker than its eps and steps say. %s",
                100 * gone,
                {"no": "fp32"}.get(precision, precision),
                100 * lost.unusable,
                CURES[precision],
            )
        return {
            "attack_gradients_unusable": lost.unusable,
            "attack_gradients_zero": lost.zero,
            "attack_gradients_nonfinite": lost.nonfinite,
        }
