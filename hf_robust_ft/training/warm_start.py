"""Attacks that start where the last epoch's ended (ATTA, arXiv 1912.11969), so that few steps do."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather, pad_across_processes
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_robust_ft.training.scheduler import steps_per_epoch

LEAST_MET = 0.1  # share of an epoch's images that the last one had as well; with a random crop, none
_LARGEST = 127  # of int8
_PARTS = ("keys", "codes", "sizes")


class AttackMemory(TrainerCallback):
    """Keeps what the attacks of the last epoch found, by image, on the device that trains; no step waits for it.

    An image is known by its pixels, so no ids are needed, and one that an augmentation has changed is met as a new one,
    whose attack starts at the image. A perturbation is kept as a share of its eps, to 1/127 of its largest value, and
    starts the next attack at that share of the eps then; the attack projects it on the ball. It takes one byte for each
    value of a pixel, and twice that towards the end of an epoch, whose own is not used before the next one. After an
    epoch each process gets what all of them found; checkpoints hold it, so that a resumed run goes on bitwise.

    Attributes:
        met: share of the images attacked in the last epoch that were known from the one before; None before the second.
    """

    def __init__(self):
        self._forget()

    def _forget(self) -> None:
        self.known: dict[str, Tensor] = {}  # of the last epoch: `_PARTS`, by ascending key
        self.found: list[dict[str, Tensor]] = []  # of this epoch and process, batch by batch
        self.met: float | None = None
        self._met: Tensor | None = None  # images of this epoch that were known
        self._steps_per_epoch: int | None = None

    # ---- What a training attack asks and tells ---------------------------------------

    def start(self, pixels: Tensor, eps: float | Tensor) -> Tensor | None:
        """Where attacks on images (N, C, H, W) are to start: at the images themselves where they are new.

        Args:
            eps: in pixel units of [0, 1], of all images or of each, (N,).

        Returns:
            (N, C, H, W), perhaps out of the ball; None where nothing of this size is known at all.
        """
        if not self.known or self.known["codes"].shape[1:] != pixels.shape[1:]:
            return None
        keys = fingerprints(pixels)
        row = torch.searchsorted(self.known["keys"], keys).clamp(max=len(self.known["keys"]) - 1)
        is_known = self.known["keys"][row] == keys
        self._met = is_known.sum() if self._met is None else self._met + is_known.sum()
        size = torch.where(is_known, self.known["sizes"][row], 0.0) * eps
        return pixels + self.known["codes"][row].float() * (size / _LARGEST).to(pixels.dtype).view(-1, 1, 1, 1)

    def keep(self, pixels: Tensor, adversarial: Tensor, eps: float | Tensor) -> None:
        """Remember, for the next epoch, what the attacks on images (N, C, H, W) found."""
        change = adversarial - pixels
        largest = change.abs().amax((1, 2, 3))
        codes = change * (_LARGEST / largest.clamp(min=1e-30)).view(-1, 1, 1, 1)
        if isinstance(eps, Tensor):
            sizes = torch.where(eps > 0, largest / eps.clamp(min=1e-30), 0.0).to(largest.dtype)
        else:
            sizes = largest / eps if eps > 0 else largest
        entry = {"keys": fingerprints(pixels), "codes": codes.round().to(torch.int8), "sizes": sizes}
        if self.found and self.found[-1]["codes"].shape[1:] != entry["codes"].shape[1:]:
            self.found.clear()  # of another size, as are those that were known
            self._met = None
        self.found.append(entry)

    # ---- Trainer's events ------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, train_dataloader=None, **kwargs
    ):
        if state.global_step == 0:  # else the checkpoint's was loaded
            self._forget()
        self._steps_per_epoch = steps_per_epoch(train_dataloader, args.gradient_accumulation_steps)
        if self._steps_per_epoch is None:
            raise ValueError(
                "attack_warm_start goes on from the last epoch, and the training data has no length (a streamed "
                "dataset?): leave it out."
            )

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        # Not at an epoch's end, which a checkpoint of its last step is written before; nor where one is gone on with.
        if state.global_step % self._steps_per_epoch == 0 and self.found:
            self._learn()

    def _learn(self) -> None:
        """Put what all processes have found in the place of what was known; each of them calls this."""
        had_known = bool(self.known) and self.known["codes"].shape[1:] == self.found[0]["codes"].shape[1:]
        self.known = {}  # first of all: what comes now needs its room
        own = {name: torch.cat([entry.pop(name) for entry in self.found]) for name in _PARTS}
        device = own["keys"].device
        met = torch.zeros((), dtype=torch.int64, device=device) if self._met is None else self._met
        self.found, self._met = [], None
        counts = gather(torch.stack([torch.tensor(len(own["keys"]), device=device), met])[None]).tolist()
        together = {name: _of_all(own.pop(name), [count for count, _ in counts]) for name in _PARTS}
        keys, order = torch.sort(together["keys"], stable=True)
        self.known = {"keys": keys} | {name: together.pop(name)[order] for name in _PARTS[1:]}
        if had_known:
            self.met = sum(met for _, met in counts) / len(keys)
            self._check_met()

    def _check_met(self) -> None:
        if self.met < LEAST_MET:
            raise ValueError(
                f"attack_warm_start found {self.met:.0%} of this epoch's images as they were in the last one: an "
                "augmentation changes them, so that there is nothing to go on from. Train without it "
                "(augmentation none), or leave attack_warm_start out."
            )

    def described(self) -> dict[str, Any]:
        """What a report says."""
        return {} if self.met is None else {"attack_warm_start_met": round(self.met, 4)}

    # ---- Checkpoints -------------------------------------------------------------------

    def save(self, folder: str | Path, process: int, saves_shared: bool) -> None:
        """Write what this process has found, and what is known, which is the same on all, where `saves_shared`."""
        if saves_shared:
            save_file({name: tensor.contiguous() for name, tensor in self.known.items()}, _file(folder, "known"))
        held = {
            f"{index}.{name}": entry[name].contiguous() for index, entry in enumerate(self.found) for name in _PARTS
        }
        held |= {} if self._met is None else {"met": self._met}
        held |= {} if self.met is None else {"met_before": torch.tensor(self.met, dtype=torch.float64)}
        save_file(held, _file(folder, process))

    def load(self, folder: str | Path, process: int, device: torch.device) -> None:
        """Read what `save` wrote.

        Raises:
            ValueError: there is nothing of this process.
        """
        known, own = _file(folder, "known"), _file(folder, process)
        if not known.is_file() or not own.is_file():
            raise ValueError(
                f"{folder} does not hold what the attacks of process {process} found: it was trained without "
                "attack_warm_start, or by fewer processes. Resume it as it was trained, or start anew."
            )
        held = load_file(own, device=str(device))
        met, self._met = held.pop("met_before", None), held.pop("met", None)
        self.known, self.met = load_file(known, device=str(device)), None if met is None else met.item()
        self.found = [{name: held[f"{index}.{name}"] for name in _PARTS} for index in range(len(held) // len(_PARTS))]


def fingerprints(images: Tensor) -> Tensor:
    """(N,) int64: an id of each image (N, C, H, W) of float32 that follows from its values' bits, without a host sync.

    A sum of the bits under random weights, modulo 2^64: the same in any batch, and hardly ever of two images.
    """
    bits = images.contiguous().view(torch.int32).flatten(1).to(torch.int64)
    return (bits * _weights(bits.shape[1], bits.device)).sum(1)


@lru_cache(maxsize=4)
def _weights(count: int, device: torch.device) -> Tensor:
    drawn = torch.randint(-(2**63), 2**63 - 1, (count,), generator=torch.Generator().manual_seed(0))
    return drawn.to(device)


def _of_all(own: Tensor, counts: list[int]) -> Tensor:
    """Everyone's rows, by process; each has as many as `counts` says."""
    if len(counts) == 1:
        return own
    padded = gather(pad_across_processes(own)).split(max(counts))
    return torch.cat([rows[:count] for rows, count in zip(padded, counts, strict=True)])


def _file(folder: str | Path, of: int | str) -> Path:
    return Path(folder) / f"attack_memory_{of}.safetensors"
