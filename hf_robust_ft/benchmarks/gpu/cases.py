"""What a section of the benchmark is made of: the set-up, and cases that are measured one after the other."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch


@dataclass(frozen=True)
class Setup:
    """What all sections share.

    Args:
        device: "cuda" or "cpu".
        small: tiny models of the same four architectures on 32 px, which shows that everything runs and nothing else.
        models: keys of `models.ARCHITECTURES`.
        batch_size: images.
        steps: of the attack.
        rounds: timed repetitions.
    """

    device: str
    small: bool
    models: tuple[str, ...]
    batch_size: int
    steps: int
    rounds: int

    @property
    def precisions(self) -> tuple[str, ...]:
        """Keys of `precision.AUTOCAST` that the device computes in."""
        return ("fp32", "tf32", "bf16") if self.device == "cuda" else ("fp32", "bf16")

    @property
    def card(self) -> str:
        return torch.cuda.get_device_name() if self.device == "cuda" else "CPU"


class Case(NamedTuple):
    """One row of the report.

    Args:
        model: a key of `models.ARCHITECTURES`.
        setting: what tells the row from others of the model.
        measure: its figures by name: a number, a text, or a ratio's `median`, `min` and `max`.
    """

    model: str
    setting: str
    measure: Callable[[], dict[str, Any]]
