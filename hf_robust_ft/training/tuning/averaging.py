"""An exponential moving average of the weights, kept beside the model in training."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

FILE_NAME = "averaged_weights.safetensors"


class WeightAveraging(TrainerCallback):
    """Averages trainable parameters and BatchNorm statistics after every optimizer step, in float32.

    BatchNorm's running mean and variance are averaged with the same decay as the weights (as timm's ModelEmaV3 does):
    the raw model's statistics belong to other weights. Integer buffers stay the model's own. Only tensors are kept,
    no second model, so the average is measured and saved in the very module that trains, whatever wraps it.

    Args:
        decay: weight of the past at each step, in (0, 1).
        warmup: use min(decay, (1 + step) / (10 + step)) (TensorFlow's ExponentialMovingAverage), so that a new head's
            random weights are forgotten early.
    """

    def __init__(self, decay: float, warmup: bool = True):
        self.decay = decay
        self.warmup = warmup
        self.averages: dict[str, Tensor] = {}
        self._is_applied = False

    def decay_at(self, step: int) -> float:
        """The decay of optimizer step `step`, counted from 1."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs
    ):
        if state.global_step == 0:  # else the checkpoint's were loaded
            self.averages = {name: tensor.detach().float().clone() for name, tensor in _averaged_tensors(model).items()}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs
    ):
        self.update(model, state.global_step)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the averages towards the model's weights."""
        current = _averaged_tensors(model)
        torch._foreach_lerp_(
            list(self.averages.values()),
            [current[name].float() for name in self.averages],
            1 - self.decay_at(step),
        )

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Put the averages into the model for a while; its own weights come back bit for bit.

        Within itself, and before any training, it changes nothing.
        """
        if self._is_applied or not self.averages:
            yield
            return
        tensors = _averaged_tensors(model)
        own = {name: tensors[name].detach().clone() for name in self.averages}
        self._is_applied = True
        try:
            _copy_into(tensors, self.averages)
            yield
        finally:
            _copy_into(_averaged_tensors(model), own)  # full bf16 evaluation replaces the buffers
            self._is_applied = False

    def save(self, folder: str | Path) -> None:
        """Write the averages into a checkpoint's folder."""
        save_file({name: tensor.contiguous() for name, tensor in self.averages.items()}, Path(folder) / FILE_NAME)

    def load(self, folder: str | Path, model: nn.Module) -> None:
        """Read a checkpoint's averages.

        Raises:
            ValueError: the checkpoint has none.
            RuntimeError: they are not this model's.
        """
        path = Path(folder) / FILE_NAME
        if not path.is_file():
            raise ValueError(
                f"{folder} holds no averaged weights: it was trained without ema_decay. Resume it without ema_decay, "
                "or start anew."
            )
        saved, tensors = load_file(path), _averaged_tensors(model)
        wrong = [name for name in tensors.keys() | saved.keys() if _shape(saved, name) != _shape(tensors, name)]
        if wrong:
            raise RuntimeError(f"{path} does not hold averages of this model's weights: {sorted(wrong)[:5]}.")
        self.averages = {name: saved[name].to(tensor.device) for name, tensor in tensors.items()}


def _averaged_tensors(model: nn.Module) -> dict[str, Tensor]:
    stored = model.state_dict().keys()
    trained = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    parameters = {name: tensor for name, tensor in trained.items() if name in stored}  # not what is hidden
    statistics = {
        name: tensor for name, tensor in model.named_buffers() if tensor.is_floating_point() and name in stored
    }
    return parameters | statistics


@torch.no_grad()
def _copy_into(tensors: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        tensors[name].copy_(value)


def _shape(tensors: dict[str, Tensor], name: str) -> torch.Size | None:
    return tensors[name].shape if name in tensors else None
