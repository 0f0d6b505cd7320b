"""A loss or gradient that is NaN or infinite: found without making the host wait, and its batch kept."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import SequentialSampler

from hf_robust_ft.schedules.sample_ids import SAMPLE_ID

# A GradScaler halves its scale at each overflow, from 2**16: after so many in a row it is not the scale.
MOST_OVERFLOWS = 40


@dataclass
class Step:
    """One optimizer step on this process.

    Args:
        number: from 0.
        position: where training stands, for messages.
        batches: what the model was given, by accumulated batch.
        values: their losses, then the norm of the gradient; on the CPU once `event` has passed.
        event: None where nothing is to be waited for.
    """

    number: int
    position: str
    batches: list[Mapping[str, Any]]
    values: Tensor
    event: Any = None

    def bad_batches(self) -> list[int]:
        """The batches whose own loss is NaN or infinite."""
        return (~self.values[:-1].isfinite()).nonzero().flatten().tolist()

    @property
    def gradient_norm(self) -> float:
        return self.values[-1].item()


class DivergenceWatch:
    """Looks at the losses and the gradient's norm of every optimizer step.

    On a CPU at once, before the weights change. On CUDA when the next step has been queued, so that the device never
    runs dry; until then the batches of one more step are held.

    Args:
        is_scaled: whether a GradScaler skips the steps whose gradient overflows, so that these are no fault.
    """

    def __init__(self, is_scaled: bool):
        self.is_scaled = is_scaled
        self._batches: list[Mapping[str, Any]] = []
        self._losses: list[Tensor] = []
        self._pending: deque[Step] = deque()
        self._overflows = 0

    def add_batch(self, inputs: Mapping[str, Any], loss: Tensor) -> None:
        """Note a batch and its loss, a scalar on the device."""
        self._batches.append(inputs)
        self._losses.append(loss.detach().float().mean())

    def end_step(self, number: int, position: str, gradient_norm: Tensor | float | None) -> Step | None:
        """Note the gradient's norm of an optimizer step; the first step that turned out to be bad, or None."""
        device = self._losses[0].device if self._losses else torch.device("cpu")
        norm = getattr(gradient_norm, "full_tensor", lambda: gradient_norm)()  # of FSDP2
        norm = torch.as_tensor(0.0 if norm is None else norm, dtype=torch.float32, device=device)
        step = Step(number, position, self._batches, torch.stack([*self._losses, norm]))
        self._batches, self._losses = [], []
        if device.type == "cuda":
            host = torch.empty(step.values.shape, pin_memory=True)
            step.values, step.event = host.copy_(step.values, non_blocking=True), torch.cuda.Event()
            step.event.record()
        else:
            step.values = step.values.cpu()
        self._pending.append(step)
        return self._settled(leaving=0 if step.event is None else 1)

    def settle(self) -> Step | None:
        """Wait for the device; the first step that turned out to be bad, or None."""
        return self._settled(leaving=0)

    def _settled(self, leaving: int) -> Step | None:
        while len(self._pending) > leaving:
            step = self._pending.popleft()
            if step.event is not None:
                step.event.synchronize()  # of the step before: the device has this one to do meanwhile
            finite = step.values.isfinite()
            self._overflows = 0 if finite[-1] else self._overflows + 1
            overflows = self.is_scaled and finite[:-1].all() and self._overflows < MOST_OVERFLOWS
            if not finite.all() and not overflows:
                return step
        return None


def write_batch(path: Path, batch: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write a batch's tensors as safetensors, by their names, and facts as text in its header."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in batch.items() if isinstance(value, Tensor)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {"format": "pt"} | {name: str(value) for name, value in facts.items()})


def told_ids(batch: Mapping[str, Any], loader: Any, epoch: int, index: int) -> str:
    """Which images are in a batch: their ids, else their places in the dataset, as far as these can be known.

    Args:
        batch: what the model was given.
        loader: the training data loader, which is read anew (its indices alone).
        epoch: from 0.
        index: the batch's number in the epoch, on this process.
    """
    if isinstance(batch.get(SAMPLE_ID), Tensor):
        return f"{SAMPLE_ID} {batch[SAMPLE_ID].tolist()}"
    sampler = getattr(loader, "batch_sampler", None)
    innermost = getattr(getattr(sampler, "batch_sampler", sampler), "sampler", None)
    if not isinstance(innermost, (SeedableRandomSampler, SequentialSampler)):
        return "of unknown place in the dataset"
    if hasattr(innermost, "set_epoch"):
        innermost.set_epoch(epoch)
    indices = next(islice(iter(sampler), index, None), None)
    return "of unknown place in the dataset" if indices is None else f"dataset indices {list(indices)}"
