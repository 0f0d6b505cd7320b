"""Attacks on a function from pixels in [0, 1] to logits; nothing here knows of transformers."""

from hf_robust_ft.attacks.apgd import APGD, AttackResult, apgd
from hf_robust_ft.attacks.autoattack import autoattack
from hf_robust_ft.attacks.compiled import compile_attack
from hf_robust_ft.attacks.gradient_meter import GradientMeter, LostGradients
from hf_robust_ft.attacks.minimum_norm import MinimumNormResult, smallest_fooling_eps
from hf_robust_ft.attacks.model_state import (
    MEMORY_FORMATS,
    attack_mode,
    fast_memory_format,
    use_fast_memory_format,
    use_memory_format,
)
from hf_robust_ft.attacks.square import Square
from hf_robust_ft.attacks.until_fooled import attack_until_fooled

__all__ = [
    "APGD",
    "MEMORY_FORMATS",
    "AttackResult",
    "GradientMeter",
    "LostGradients",
    "MinimumNormResult",
    "Square",
    "apgd",
    "attack_mode",
    "attack_until_fooled",
    "autoattack",
    "compile_attack",
    "fast_memory_format",
    "smallest_fooling_eps",
    "use_fast_memory_format",
    "use_memory_format",
]
