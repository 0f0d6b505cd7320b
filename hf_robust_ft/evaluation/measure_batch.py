"""What `evaluate_robustness` does with each batch, and what it keeps of it."""

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import hf_robust_ft
from hf_robust_ft.attacks import APGD, Square, autoattack
from hf_robust_ft.attacks.autoattack import check_num_classes
from hf_robust_ft.attacks.batch_checks import check_batch, check_first_batch
from hf_robust_ft.attacks.losses import get_loss
from hf_robust_ft.attacks.pixels import PixelClassifier, PixelSpace
from hf_robust_ft.attacks.precision import autocast_dtype
from hf_robust_ft.attacks.random_state import seeded_generator
from hf_robust_ft.attacks.rehearsal import count_classes
from hf_robust_ft.evaluation.batch_artifacts import EVIDENCE_KEYS, BatchEvidence
from hf_robust_ft.evaluation.batches import NumberedBatches
from hf_robust_ft.evaluation.checked_images import CHECKED_IMAGES, ClassReservoir, draw_by_class
from hf_robust_ft.evaluation.classifier import nan_refused
from hf_robust_ft.evaluation.distributed import SharedWork
from hf_robust_ft.evaluation.progress import counted, progress_bar
from hf_robust_ft.evaluation.protocols import Outcome, attack_standing, get_protocol
from hf_robust_ft.evaluation.results_store import ResultsStore
from hf_robust_ft.evaluation.settings import EvaluationSettings
from hf_robust_ft.evaluation.stored_examples import ExampleFolder
from hf_robust_ft.evaluation.trust_checks import run_trust_checks
from hf_robust_ft.evaluation.trust_verdicts import TrustCheck
from hf_robust_ft.provenance.tensor_hashes import hash_model, hash_tensors

# What is kept of a batch: a list each, with an entry per image ("autoattack": per image it was asked for).
KEYS = ("labels", "smallest_eps", "wrong_classes", "autoattack", *EVIDENCE_KEYS)


@dataclass
class EvaluationWork:
    """One evaluation, and what is done with a batch."""

    classifier: PixelClassifier
    pixel_space: PixelSpace
    settings: EvaluationSettings
    attack: APGD | Square  # of this round
    asked: frozenset[int] | None = None  # in the last round, the images that AutoAttack is asked about
    num_labels: int | None = None
    rounds_done: int = 0  # of `Convergence`
    largest_batch: int = 0
    examples: ExampleFolder | None = None
    drawn: ClassReservoir | None = None  # where images cannot be looked up again once all labels are known

    @property
    def _name_of_round(self) -> str:
        return str(self.attack) if self.asked is None else "AutoAttack"

    @property
    def device(self) -> torch.device:
        parameter = next(self.classifier.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    def stored_in(
        self, folder: str | Path | None, batches: NumberedBatches, processes: SharedWork
    ) -> AbstractContextManager[ResultsStore | None]:
        """The store for all that a batch's record depends on besides its images; none without a folder."""
        if folder is None:
            return nullcontext()
        autocast = autocast_dtype(self.device)
        recorded = {
            "protocol": self.settings.protocol,
            "threat_model": str(self.settings.threat_model),
            "epsilons": self.settings.epsilons,
            "attack": dataclasses.asdict(self.attack),
            "seed": self.settings.seed,
            "batch_size": batches.batch_size,
            "pixel_space": self.pixel_space.settings(),
            "normalisation": self.classifier.pixel_space.settings(),
            "model_inputs": sorted(self.classifier.model_inputs),
            "model": hash_model(self.classifier.model),
            "autocast": None if autocast is None else str(autocast),
            "hf_robust_ft": hf_robust_ft.__version__,
            "torch": torch.__version__,
            "kept": [*KEYS, *(["examples"] if self.examples else [])],
        } | ({"rounds_done": self.rounds_done} if self.rounds_done else {})
        if self.asked is not None:
            recorded["autoattack"] = sorted(self.asked)
        return ResultsStore(folder, recorded, processes.rank)

    def all_of(
        self,
        batches: NumberedBatches,
        processes: SharedWork,
        store: ResultsStore | None,
        progress: bool,
        earlier: Mapping[int, dict[str, Any]] | None = None,
        *,
        repeated: bool,
    ) -> dict[int, dict[str, Any]]:
        """Records by batch number: those of the own batches, computed or, where the store has them, looked up.

        Given the `earlier` round's, what they left standing is attacked. With a store, or if the batches are `repeated`
        in further rounds, their checksums are kept, and each must hold the images and labels it held before.
        """
        records = {}
        bar = progress_bar(
            total=batches.images_of_process(processes.rank, processes.world_size),
            desc="Robust evaluation" + ("" if earlier is None else f", {self._name_of_round}"),
            unit="images",
            disable=not progress or processes.rank > 0,
        )
        counts = np.zeros(3)
        with bar:
            for number, first, batch in batches.of_process(processes.rank, processes.world_size):
                processes.check_others()
                pixels, labels = self.prepare(batch, first)
                self.largest_batch = max(self.largest_batch, len(labels))
                compared = repeated or store is not None
                checksum = hash_tensors((key, batch[key]) for key in ("pixel_values", "labels")) if compared else None
                before = None if earlier is None else earlier[number]
                record = None if store is None else store.done.get(number)
                if any(known is not None and known["data"] != checksum for known in (before, record)):
                    raise ValueError(
                        f"Batch {number} holds other images or labels than at an earlier pass: the dataset or its "
                        "transform changed, or is random."
                        + ("" if store is None else " Choose another results folder.")
                    )
                if record is None or (self.examples is not None and not self.examples.holds(record["examples"])):
                    if before is None:
                        record = self.measure_batch(number, first, pixels, labels)
                    else:
                        record = self.measure_again(number, first, pixels, labels, before)
                    if compared:
                        record["data"] = checksum
                    if store is not None:
                        store.append(number, record)
                records[number] = record
                if self.drawn is not None and earlier is None:
                    self.drawn.add(pixels, labels, first)
                smallest = np.array(_with_inf(record["smallest_eps"]))
                counts += len(smallest), (smallest > 0).sum(), (smallest > self.settings.epsilons[-1]).sum()
                bar.set_postfix(clean=f"{counts[1] / counts[0]:.1%}", adversarial=f"{counts[2] / counts[0]:.1%}")
                bar.update(len(smallest))
        return records

    def prepare(self, batch: Any, first: int) -> tuple[Tensor, Tensor]:
        """Pixels in [0, 1] and labels of a batch that an attack can work on; `first` is its first image's index."""
        check = check_first_batch if first == 0 else check_batch
        check(batch, self.pixel_space, self.num_labels, first=first)
        pixels = self.pixel_space.clipped_pixels(batch["pixel_values"].to(self.device))
        if self.num_labels is None:  # a plain module tells its number of classes only by its logits
            self.num_labels = count_classes(self.classifier, pixels[:1], attacked=self.settings.threat_model.eps > 0)
            check_batch(batch, self.pixel_space, self.num_labels, first=first)
            get_loss(self.attack.loss).check_num_classes(self.num_labels)
            if self.settings.autoattack:
                check_num_classes(self.num_labels)
        return pixels, batch["labels"].to(self.device)

    def measure_batch(self, number: int, first: int, pixels: Tensor, labels: Tensor) -> dict[str, Any]:
        """What is kept of a batch; it depends on nothing that happened before."""
        evidence = BatchEvidence(self.classifier, pixels, labels, first)
        with evidence.meter, nan_refused(self.classifier, f"an image of batch {number}"):
            outcome = get_protocol(self.settings.protocol).measure(
                self.classifier,
                pixels,
                labels,
                threat_model=self.settings.threat_model,
                epsilons=self.settings.epsilons,
                attack=self.attack,
                generator=self._generator(number),
            )
        return self._record(number, labels, outcome, evidence, {"autoattack": []})

    def measure_again(
        self, number: int, first: int, pixels: Tensor, labels: Tensor, before: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What is kept of a batch after one more round."""
        if self.asked is not None:
            return self._ask_autoattack(number, first, pixels, labels, before)
        evidence = BatchEvidence(self.classifier, pixels, labels, first, before)
        with evidence.meter, nan_refused(self.classifier, f"an image of batch {number}"):
            outcome = attack_standing(
                self.classifier,
                pixels,
                labels,
                smallest_eps=torch.tensor(_with_inf(before["smallest_eps"]), dtype=torch.float64, device=pixels.device),
                wrong_classes=torch.tensor(before["wrong_classes"], device=pixels.device),
                threat_model=self.settings.threat_model,
                epsilons=self.settings.epsilons,
                attack=self.attack,
                by_distance=get_protocol(self.settings.protocol).by_distance,
                generator=self._generator(number),
            )
        return self._record(number, labels, outcome, evidence, before)

    def _record(
        self, number: int, labels: Tensor, outcome: Outcome, evidence: BatchEvidence, before: Mapping[str, Any]
    ) -> dict[str, Any]:
        record = {
            **before,
            "labels": labels.tolist(),
            "smallest_eps": [eps if np.isfinite(eps) else None for eps in outcome.smallest_eps.tolist()],
            "wrong_classes": outcome.wrong_classes.tolist(),
        }
        where = (number, self.rounds_done)
        return record | evidence.of(record, outcome.adversarial, self.settings.threat_model.eps, self.examples, where)

    def _generator(self, number: int) -> torch.Generator:
        """Random starts depend on (seed, batch, round) alone."""
        key = (self.settings.seed, number, self.rounds_done) if self.rounds_done else (self.settings.seed, number)
        return seeded_generator(self.device, *key)

    def _ask_autoattack(
        self, number: int, first: int, pixels: Tensor, labels: Tensor, before: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What is kept of a batch once AutoAttack has had its say about those of its images that were drawn for it."""
        smallest = torch.tensor(_with_inf(before["smallest_eps"]), dtype=torch.float64, device=pixels.device)
        wrong_classes, adversarial = torch.tensor(before["wrong_classes"], device=pixels.device), pixels
        drawn = torch.tensor([first + row in self.asked for row in range(len(labels))], device=pixels.device)
        withstood = smallest.isinf()
        rows = (drawn & withstood).nonzero()[:, 0]
        evidence = BatchEvidence(self.classifier, pixels, labels, first, before)
        with evidence.meter:
            if len(rows):
                found = autoattack(
                    self.classifier, pixels[rows], labels[rows], self.settings.threat_model, seed=self.settings.seed
                )
                fallen = rows[found.fooled]
                withstood = withstood.index_fill(0, fallen, False)
                wrong_classes = wrong_classes.index_copy(0, fallen, found.predictions[found.fooled])
                adversarial = adversarial.index_copy(0, fallen, found.adversarial[found.fooled])
        outcome = Outcome(smallest, wrong_classes, adversarial)
        return self._record(number, labels, outcome, evidence, {**before, "autoattack": withstood[drawn].tolist()})

    def trust_checks(
        self, batches: NumberedBatches, rows: Mapping[str, list], check_converged: bool, progress: bool
    ) -> list[TrustCheck]:
        """The checks on images drawn by class, of these on those as large as the first, given what all rows hold."""
        if batches.looks_up:
            positions = draw_by_class(rows["labels"], CHECKED_IMAGES, self.settings.seed)
            found = [(self.prepare(batch, position), position) for position, batch in batches.examples(positions)]
            found = [entry for entry in found if entry[0][0].shape == found[0][0][0].shape]
            positions = [position for _, position in found]
            pixels, labels = (torch.cat(parts) for parts in zip(*(prepared for prepared, _ in found), strict=True))
        else:
            pixels, labels, positions = self.drawn.images()
        smallest = torch.tensor(rows["smallest_eps"], dtype=torch.float64)
        with progress_bar(None, "Trust checks", "forward passes", disable=not progress, leave=False) as bar:
            return run_trust_checks(
                counted(self.classifier, bar),
                pixels,
                labels,
                self.settings.threat_model,
                self.attack,
                seed=self.settings.seed,
                batch_size=self.largest_batch,
                check_converged=check_converged,
                standing=(smallest[positions] > self.settings.epsilons[-1]).to(pixels.device),
                classes=torch.tensor([*{*rows["labels"], *rows["wrong_classes"]}], device=pixels.device),
                protocol=self.settings.protocol,
            )


def _with_inf(smallest_eps: Sequence[float | None]) -> list[float]:
    """As numbers; records are kept as JSON, which has no infinity."""
    return [np.inf if eps is None else eps for eps in smallest_eps]
