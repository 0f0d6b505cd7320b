"""The parts of an objective's loss, logged beside it: `loss_clean`, `loss_kl`, ..."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class LossParts(TrainerCallback):
    """Sums the parts on the device until a log is due; then means over steps and processes, as Trainer's `loss` is."""

    def __init__(self):
        self._forget()

    def _forget(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        self._means: dict[str, float] = {}

    def add(self, parts: Mapping[str, Tensor], share: float = 1.0) -> None:
        """Take in those of a batch.

        Args:
            parts: the same names each time.
            share: what a batch counts in its optimizer step.
        """
        for name, value in parts.items():
            value = value.detach().float().mean() * share
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def once(self) -> dict[str, float]:
        """The means for the log that is due; nothing where there are no parts."""
        means, self._means = self._means, {}
        return means

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        self._forget()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        self._steps += 1
        self._settle(control)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        self._settle(control)

    def _settle(self, control: TrainerControl) -> None:
        """Read the sums of all processes, each of which calls this. note: a host sync"""
        if not control.should_log or not self._sums:
            return
        sums = reduce(torch.stack(list(self._sums.values())), "mean").tolist()
        self._means = {name: value / max(self._steps, 1) for name, value in zip(self._sums, sums, strict=True)}
        self._sums, self._steps = {}, 0
