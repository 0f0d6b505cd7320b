"""What `evaluate_segmentation` does with each batch, and what it keeps of it."""

import dataclasses
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import hf_robust_ft
from hf_robust_ft.attacks.batch_checks import check_batch, check_first_batch
from hf_robust_ft.attacks.dense_losses import ignored_as_negative
from hf_robust_ft.attacks.mask_checks import MaskCheck
from hf_robust_ft.attacks.pass_meter import PassMeter
from hf_robust_ft.attacks.pixels import PixelSpace
from hf_robust_ft.attacks.precision import autocast_dtype
from hf_robust_ft.attacks.random_state import seeded_generator
from hf_robust_ft.attacks.rehearsal import count_classes
from hf_robust_ft.attacks.segmenter import PixelSegmenter
from hf_robust_ft.evaluation.batches import NumberedBatches
from hf_robust_ft.evaluation.classifier import nan_refused
from hf_robust_ft.evaluation.distributed import SharedWork
from hf_robust_ft.evaluation.progress import progress_bar
from hf_robust_ft.evaluation.results_store import ResultsStore
from hf_robust_ft.evaluation.segmentation.counts import pixel_accuracy, pixel_counts
from hf_robust_ft.evaluation.segmentation.settings import SegmentationSettings
from hf_robust_ft.evaluation.segmentation.worst_case import fewest_right
from hf_robust_ft.provenance.image_hashes import as_hex, hash_images
from hf_robust_ft.provenance.tensor_hashes import hash_model, hash_tensors


@dataclass
class SegmentationWork:
    """One evaluation, and what is done with a batch.

    A batch's record holds, as JSON: `clean` and `found`, sparse arrays (see `to_sparse`) of pixel counts, of shapes
    (N, 3, K) and (E - 1, A, N, 3, K) for each eps above 0 and each of A attacks; `image_hashes`; `passes`.
    """

    segmenter: PixelSegmenter
    pixel_space: PixelSpace
    settings: SegmentationSettings
    num_labels: int | None = None
    largest_batch: int = 0

    @property
    def device(self) -> torch.device:
        parameter = next(self.segmenter.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    def of_size(self, labels: Tensor) -> PixelSegmenter:
        """The segmenter whose logits are of the size of these masks (N, H', W')."""
        return PixelSegmenter(
            self.segmenter.model, self.segmenter.pixel_space, labels.shape[1:], self.segmenter.model_inputs
        )

    def stored_in(
        self, folder: str | Path | None, batches: NumberedBatches, processes: SharedWork
    ) -> AbstractContextManager[ResultsStore | None]:
        """The store for all that a batch's record depends on besides its images; none without a folder."""
        if folder is None:
            return nullcontext()
        autocast = autocast_dtype(self.device)
        recorded = {
            "task": "image-segmentation",
            "threat_model": str(self.settings.threat_model),
            "epsilons": self.settings.epsilons,
            "attacks": [dataclasses.asdict(attack) for attack in self.settings.attacks],
            "ignore_index": self.settings.ignore_index,
            "seed": self.settings.seed,
            "batch_size": batches.batch_size,
            "pixel_space": self.pixel_space.settings(),
            "normalisation": self.segmenter.pixel_space.settings(),
            "model_inputs": sorted(self.segmenter.model_inputs),
            "model": hash_model(self.segmenter.model),
            "autocast": None if autocast is None else str(autocast),
            "hf_robust_ft": hf_robust_ft.__version__,
            "torch": torch.__version__,
        }
        return ResultsStore(folder, recorded, processes.rank)

    def all_of(
        self, batches: NumberedBatches, processes: SharedWork, store: ResultsStore | None, progress: bool
    ) -> dict[int, dict[str, Any]]:
        """Records by batch number: those of the own batches, computed or, where the store has them, looked up."""
        records = {}
        bar = progress_bar(
            total=batches.images_of_process(processes.rank, processes.world_size),
            desc="Robust evaluation",
            unit="images",
            disable=not progress or processes.rank > 0,
        )
        sums = np.zeros((2, 3, 1), dtype=np.int64)  # of all classes: before and under attack
        with bar:
            for number, first, batch in batches.of_process(processes.rank, processes.world_size):
                processes.check_others()
                pixels, labels = self.prepare(batch, first)
                self.largest_batch = max(self.largest_batch, len(labels))
                keys = ("pixel_values", "labels")
                checksum = None if store is None else hash_tensors((key, batch[key]) for key in keys)
                record = None if store is None else store.done.get(number)
                if record is not None and record["data"] != checksum:
                    raise ValueError(
                        f"Batch {number} holds other images or labels than at an earlier pass: the dataset or its "
                        "transform changed, or is random. Choose another results folder."
                    )
                if record is None:
                    record = self.measure_batch(number, pixels, labels)
                    if store is not None:
                        record["data"] = checksum
                        store.append(number, record)
                records[number] = record
                clean, found = from_sparse(record["clean"]), from_sparse(record["found"])
                worst = fewest_right(np.concatenate([clean[None], *found]))
                sums += np.stack([clean.sum((0, 2)), worst.sum((0, 2))])[..., None]
                shown = pixel_accuracy(sums)
                bar.set_postfix(clean=f"{shown[0]:.1%}", adversarial=f"{shown[1]:.1%}")
                bar.update(len(labels))
        return records

    def prepare(self, batch: Any, first: int) -> tuple[Tensor, Tensor]:
        """Pixels in [0, 1] and masks (N, H, W), -100 where ignored, of a batch; `first` is its first image's index."""
        masks = MaskCheck(self.settings.ignore_index)
        check = check_first_batch if first == 0 else check_batch
        check(batch, self.pixel_space, self.num_labels, first=first, labels=masks)
        pixels = self.pixel_space.clipped_pixels(batch["pixel_values"].to(self.device))
        if self.num_labels is None:  # a plain module tells its number of classes only by its logits
            self.num_labels = count_classes(self.segmenter, pixels[:1], attacked=self.settings.threat_model.eps > 0)
            check_batch(batch, self.pixel_space, self.num_labels, first=first, labels=masks)
        return pixels, ignored_as_negative(batch["labels"].to(self.device), self.settings.ignore_index)

    def measure_batch(self, number: int, pixels: Tensor, labels: Tensor) -> dict[str, Any]:
        """What is kept of a batch; it depends on nothing that happened before."""
        segmenter, settings = self.of_size(labels), self.settings
        generator = seeded_generator(self.device, settings.seed, number)
        meter = PassMeter(segmenter)
        with meter, nan_refused(segmenter, f"an image of batch {number}"):
            with torch.no_grad():
                clean = pixel_counts(segmenter(pixels).argmax(1), labels, self.num_labels)
            found = [clean[:0]]
            for eps in settings.epsilons[1:]:
                for attack in settings.attacks:
                    result = attack(segmenter, pixels, labels, settings.threat_model, eps=eps, generator=generator)
                    found.append(pixel_counts(result.predictions, labels, self.num_labels))
        shape = (len(settings.epsilons) - 1, len(settings.attacks), *clean.shape)
        return {
            "clean": to_sparse(clean.cpu().numpy()),
            "found": to_sparse(torch.cat(found).reshape(shape).cpu().numpy()),
            "image_hashes": as_hex(hash_images(pixels)),
            "passes": [meter.forwards, meter.gradients],
        }


def to_sparse(array: np.ndarray) -> dict[str, list[int]]:
    """Whole numbers as JSON, of which most are 0, since an image has few classes: shape, and where they are which.

    >>> to_sparse(np.array([[0, 7], [0, 0]]))
    {'shape': [2, 2], 'where': [1], 'values': [7]}
    """
    where = np.flatnonzero(array)
    return {"shape": list(array.shape), "where": where.tolist(), "values": array.reshape(-1)[where].tolist()}


def from_sparse(sparse: dict[str, list[int]]) -> np.ndarray:
    """The array again, int64."""
    array = np.zeros(sparse["shape"], dtype=np.int64)
    array.reshape(-1)[sparse["where"]] = sparse["values"]
    return array
