"""Attacks on a function from pixels in [0, 1] to logits; nothing here knows of transformers."""

from hf_robust_ft.attacks.apgd import APGD, AttackResult, apgd
from hf_robust_ft.attacks.model_state import attack_mode

__all__ = ["APGD", "AttackResult", "apgd", "attack_mode"]
