"""Clean, adversarial and expected robustness of a model over a dataset, as a `RobustnessReport`."""

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

import hf_robust_ft
from hf_robust_ft.attacks import APGD, attack_mode, autoattack, fast_memory_format
from hf_robust_ft.attacks.autoattack import check_autoattack, check_num_classes
from hf_robust_ft.batch_checks import check_batch, check_first_batch
from hf_robust_ft.batches import NumberedBatches, of_one_size
from hf_robust_ft.convergence import (
    AUTO,
    STEPS_LIMIT,
    Convergence,
    check_steps_limit,
    first_attack,
    parse_attack_steps,
    with_convergence,
)
from hf_robust_ft.evaluated_model import as_classifier, nan_refused
from hf_robust_ft.losses import get_loss
from hf_robust_ft.metrics.robustness.threat_distribution_specs import parse_distribution
from hf_robust_ft.pixels import PixelClassifier, PixelSpace
from hf_robust_ft.precision import SHORT_NAMES, autocast_dtype, evaluated_in
from hf_robust_ft.protocols import attack_standing, evaluation_attack, get_protocol, resolve_epsilons
from hf_robust_ft.rehearsal import count_classes
from hf_robust_ft.reports import RobustnessReport, build_report
from hf_robust_ft.results_store import ResultsStore, batch_checksum, model_fingerprint
from hf_robust_ft.shared_work import SharedWork
from hf_robust_ft.threat_models import ThreatModel
from hf_robust_ft.trust_checks import CHECKED_IMAGES, TrustCheck, run_trust_checks


def evaluate_robustness(
    model: nn.Module,
    dataset_or_loader: Any,
    *,
    threat_model: ThreatModel,
    pixel_space: PixelSpace | None = None,
    epsilons: Sequence[float | str] | None = None,
    attack: APGD | None = None,
    attack_steps: int | str | None = None,
    attack_steps_limit: int = STEPS_LIMIT,
    protocol: str = "paper",
    distributions: Sequence[str | Mapping[float | str, float]] = (),
    autoattack: int = 0,
    checks: bool = True,
    batch_size: int = 64,
    device: torch.device | str | None = None,
    seed: int = 0,
    results_dir: str | Path | None = None,
    class_names: Sequence[str] | None = None,
    progress: bool = True,
) -> RobustnessReport:
    """Measure a model's accuracy under attack over eps in [0, eps_g].

    Under `torchrun` (an initialised process group) the batches are dealt out to the processes, all of which must call
    this, and each returns the whole report, the same as one process makes. Where one fails, the others raise its
    error as `shared_work.OtherProcessFailed` after the batch at hand. Convolutional models are evaluated in
    channels_last.

    Args:
        model: a transformers, PEFT, timm or plain classifier of `pixel_values`, or a `PixelClassifier` (then
            `pixel_values` are pixels in [0, 1]); compiled or in DDP's wrapper, but not sharded. It comes back in the
            mode it was in.
        dataset_or_loader: a map-style dataset of `{"pixel_values", "labels"}`, or a DataLoader of such batches.
        threat_model: norm and largest eps.
        pixel_space: how to undo the normalisation of `pixel_values`, e.g. `PixelSpace.from_processor(processor)`;
            without one they must be pixels in [0, 1], which is checked.
        epsilons: the grid, increasing from 0 to the threat model's eps; the default is every 1/255 under Linf, 8
            equal steps under L2 and L1.
        attack: the default is the paper's, APGD-CE with 10 steps from the clean image.
        attack_steps: in place of the attack's own; "auto" doubles them, from 10, on what still stands until the
            accuracy settles (`convergence.Convergence`), for which the source must bring the same batches again.
        attack_steps_limit: the most steps of "auto".
        protocol: a key of `PROTOCOLS`: "paper" (comparable) or "exact" (stronger, no quadrature error).
        distributions: also report expected robustness under these distributions of eps, e.g. "beta:2,5", or as any
            weights of any eps "weights:0=1,2/255=3" or {0: 1, "2/255": 3}; see
            `RobustnessReport.expected_robustness_under`.
        autoattack: run standard AutoAttack at eps_g on what the protocol leaves standing of the first so many images.
        checks: run `trust_checks` on the first `CHECKED_IMAGES`, before anything else.
        batch_size: images at a time, when given a dataset; a loader's own size holds for the checks too.
        device: where to run; the default is the model's own device.
        seed: of the attack's random starts, when it has any, and of AutoAttack.
        results_dir: append each batch's results to a file in this folder; a run that was cut off continues there and
            ends in the same report.
        class_names: names for the report's per-class rows.
        progress: show a progress bar with the accuracy so far.

    Raises:
        ValueError: unknown protocol, bad grid, a sharded model, empty dataset, or a batch an attack cannot work on
            (see `batch_checks`).
        OtherProcessFailed: another process raised.
    """
    with SharedWork() as processes:
        attack = evaluation_attack() if attack is None else attack
        _check_arguments(threat_model, attack, distributions, autoattack, seed)
        check_steps_limit(attack_steps_limit)
        if attack_steps is not None:
            attack = first_attack(attack, parse_attack_steps(attack_steps))
        get_protocol(protocol)
        grid = resolve_epsilons(epsilons, threat_model)
        classifier, pixel_space = as_classifier(model, pixel_space)
        rounds = Convergence(attack, grid, protocol, attack_steps_limit) if attack_steps == AUTO else None
        repeatable = processes.world_size > 1 or results_dir is not None or rounds is not None
        batches = NumberedBatches(dataset_or_loader, batch_size, repeatable)
        work = _Work(classifier, pixel_space, threat_model, grid, attack, protocol, seed, autoattack)
        if device is not None:
            classifier.to(device)
        autocast = autocast_dtype(work.device)
        with (
            attack_mode(classifier),
            fast_memory_format(classifier) as memory_format,
            work.stored_in(results_dir, batches, processes) as store,
        ):
            found_checks = []
            if checks and processes.rank == 0:
                found_checks = work.trust_checks(batches, check_converged=rounds is None)
            records = work.all_of(batches, processes, store, progress)
            rows, found_checks = _of_all_processes(processes, records, found_checks)
            while rounds is not None and (next_attack := rounds.after(rows["smallest_eps"])) is not None:
                work = dataclasses.replace(work, attack=next_attack, rounds_done=len(rounds.rounds))
                with work.stored_in(results_dir, batches, processes) as round_store:
                    records = work.all_of(batches, processes, round_store, progress, records)
                rows, _ = _of_all_processes(processes, records)
    if rounds is not None and checks:
        found_checks = with_convergence(found_checks, rounds)
    return build_report(
        rows["labels"],
        rows["smallest_eps"],
        rows["wrong_classes"],
        threat_model=threat_model,
        epsilons=grid,
        attack=work.attack,
        protocol=protocol,
        distributions=distributions,
        autoattack=rows["autoattack"],
        checks=found_checks,
        convergence=None if rounds is None else rounds.described(),
        class_names=class_names,
        metadata={
            "memory_format": memory_format,
            **evaluated_in(classifier, SHORT_NAMES.get(autocast), processes.rank == 0),
        },
    )


def _check_arguments(
    threat_model: ThreatModel, attack: APGD, distributions: Sequence, autoattack: int, seed: int
) -> None:
    """Raise a ValueError for what would fail only after hours, or not at all."""
    if not isinstance(threat_model, ThreatModel):
        raise ValueError(
            f"threat_model must be a ThreatModel, e.g. ThreatModel('Linf', '4/255'); got {threat_model!r}."
        )
    if not isinstance(attack, APGD):
        raise ValueError(f"attack must be an APGD, e.g. APGD(steps=20, select='fooled'); got {attack!r}.")
    if isinstance(distributions, (str, Mapping)):
        raise ValueError(f"distributions must be a list of them, got {distributions!r} alone: put it in brackets.")
    for distribution in distributions:
        parse_distribution(distribution, threat_model.eps)
    if autoattack:
        check_autoattack(autoattack)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0, got {seed!r}.")


# What is kept of a batch: a list each, with an entry per image ("autoattack": per image it was asked for).
_KEYS = ("labels", "smallest_eps", "wrong_classes", "autoattack")


def _of_all_processes(
    processes: SharedWork, records: dict[int, dict[str, Any]], checks: Sequence[TrustCheck] = ()
) -> tuple[dict[str, list], list[TrustCheck]]:
    """What all processes found, in the order of the data, and the first one's checks.

    Raises:
        ValueError: no process had a batch.
    """
    parts = processes.gather((records, list(checks)))
    everyones = {number: record for own, _ in parts for number, record in own.items()}
    if not everyones:
        raise ValueError("The dataset is empty: there is nothing to evaluate.")
    rows = {key: [value for _, record in sorted(everyones.items()) for value in record[key]] for key in _KEYS}
    rows["smallest_eps"] = [np.inf if eps is None else eps for eps in rows["smallest_eps"]]
    # Asked after the first round only, it may have left what a later one fooled.
    rows["autoattack"] = [
        withstood and np.isinf(eps) for withstood, eps in zip(rows["autoattack"], rows["smallest_eps"], strict=False)
    ]
    return rows, parts[0][1]


@dataclass
class _Work:
    """One evaluation's settings, and what is done with a batch."""

    classifier: PixelClassifier
    pixel_space: PixelSpace
    threat_model: ThreatModel
    epsilons: list[float]
    attack: APGD
    protocol: str
    seed: int
    autoattack: int
    num_labels: int | None = None
    rounds_done: int = 0  # of `Convergence`

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
        settings = {
            "protocol": self.protocol,
            "threat_model": str(self.threat_model),
            "epsilons": self.epsilons,
            "attack": dataclasses.asdict(self.attack),
            "autoattack": self.autoattack,
            "seed": self.seed,
            "batch_size": batches.batch_size,
            "pixel_space": self.pixel_space.settings(),
            "normalisation": self.classifier.pixel_space.settings(),
            "model_inputs": sorted(self.classifier.model_inputs),
            "model": model_fingerprint(self.classifier.model),
            "autocast": None if autocast is None else str(autocast),
            "hf_robust_ft": hf_robust_ft.__version__,
            "torch": torch.__version__,
        } | ({"rounds_done": self.rounds_done} if self.rounds_done else {})
        return ResultsStore(folder, settings, rank=processes.rank, world_size=processes.world_size)

    def all_of(
        self,
        batches: NumberedBatches,
        processes: SharedWork,
        store: ResultsStore | None,
        progress: bool,
        earlier: Mapping[int, dict[str, Any]] | None = None,
    ) -> dict[int, dict[str, Any]]:
        """Records by batch number: those of the own batches, computed or, where the store has them, looked up.

        Given the `earlier` round's, what they left standing is attacked.
        """
        records = {}
        bar = tqdm(
            total=batches.images_of_process(processes.rank, processes.world_size),
            desc="Robust evaluation" + (f", {self.attack.steps} steps" if earlier is not None else ""),
            unit="img",
            disable=not progress or processes.rank > 0,
        )
        counts = np.zeros(3)
        with bar:
            for number, first, batch in batches.of_process(processes.rank, processes.world_size):
                processes.check_others()
                pixels, labels = self.prepare(batch, first)
                checksum = batch_checksum(batch["pixel_values"], batch["labels"])
                before = None if earlier is None else earlier[number]
                record = None if store is None else store.done.get(number)
                if any(known is not None and known["data"] != checksum for known in (before, record)):
                    raise ValueError(
                        f"Batch {number} holds other images or labels than at an earlier pass: the dataset or its "
                        "transform changed, or is random."
                        + ("" if store is None else " Choose another results folder.")
                    )
                if record is None:
                    if before is None:
                        record = self.measure_batch(number, first, pixels, labels)
                    else:
                        record = self.measure_again(number, pixels, labels, before)
                    record["data"] = checksum
                    if store is not None:
                        store.append(number, record)
                records[number] = record
                smallest = np.array([np.inf if eps is None else eps for eps in record["smallest_eps"]])
                counts += len(smallest), (smallest > 0).sum(), (smallest > self.epsilons[-1]).sum()
                bar.set_postfix(clean=f"{counts[1] / counts[0]:.1%}", adversarial=f"{counts[2] / counts[0]:.1%}")
                bar.update(len(smallest))
        return records

    def prepare(self, batch: Any, first: int) -> tuple[Tensor, Tensor]:
        """Pixels in [0, 1] and labels of a batch that an attack can work on; `first` is its first image's index."""
        check = check_first_batch if first == 0 else check_batch
        check(batch, self.pixel_space, self.num_labels, first=first)
        pixels = self.pixel_space.to_pixels(batch["pixel_values"].to(self.device)).clamp(0, 1)
        if self.num_labels is None:  # a plain module tells its number of classes only by its logits
            self.num_labels = count_classes(self.classifier, pixels[:1], attacked=self.threat_model.eps > 0)
            check_batch(batch, self.pixel_space, self.num_labels, first=first)
            get_loss(self.attack.loss).check_num_classes(self.num_labels)
            if self.autoattack:
                check_num_classes(self.num_labels)
        return pixels, batch["labels"].to(self.device)

    def measure_batch(self, number: int, first: int, pixels: Tensor, labels: Tensor) -> dict[str, Any]:
        """What is kept of a batch; it depends on nothing that happened before."""
        with nan_refused(self.classifier, f"an image of batch {number}"):
            outcome = get_protocol(self.protocol).measure(
                self.classifier,
                pixels,
                labels,
                threat_model=self.threat_model,
                epsilons=self.epsilons,
                attack=self.attack,
                generator=self._generator(number),
            )
        return {
            "labels": labels.tolist(),
            "smallest_eps": [eps if np.isfinite(eps) else None for eps in outcome.smallest_eps.tolist()],
            "wrong_classes": outcome.wrong_classes.tolist(),
            "autoattack": self._autoattack(first, pixels, labels, outcome.smallest_eps.isinf().cpu()),
        }

    def measure_again(self, number: int, pixels: Tensor, labels: Tensor, before: Mapping[str, Any]) -> dict[str, Any]:
        """What is kept of a batch after one more round."""
        smallest = [np.inf if eps is None else eps for eps in before["smallest_eps"]]
        with nan_refused(self.classifier, f"an image of batch {number}"):
            smallest_eps, wrong_classes = attack_standing(
                self.classifier,
                pixels,
                labels,
                smallest_eps=torch.tensor(smallest, dtype=torch.float64, device=pixels.device),
                wrong_classes=torch.tensor(before["wrong_classes"], device=pixels.device),
                threat_model=self.threat_model,
                epsilons=self.epsilons,
                attack=self.attack,
                by_distance=get_protocol(self.protocol).by_distance,
                generator=self._generator(number),
            )
        return {
            **before,
            "smallest_eps": [eps if np.isfinite(eps) else None for eps in smallest_eps.tolist()],
            "wrong_classes": wrong_classes.tolist(),
        }

    def _generator(self, number: int) -> torch.Generator:
        """Random starts depend on (seed, batch, round) alone."""
        key = (self.seed, number, self.rounds_done) if self.rounds_done else (self.seed, number)
        generator = torch.Generator(self.device)
        return generator.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))

    def _autoattack(self, first: int, pixels: Tensor, labels: Tensor, standing: Tensor) -> list[bool]:
        """Which of the batch's images that AutoAttack is asked for withstand it as well."""
        asked = standing[: max(0, self.autoattack - first)].clone()
        rows = asked.nonzero()[:, 0]
        if len(rows):
            index = rows.to(pixels.device)
            found = autoattack(self.classifier, pixels[index], labels[index], self.threat_model, seed=self.seed)
            asked[rows] = ~found.fooled.cpu()
        return asked.tolist()

    def trust_checks(self, batches: NumberedBatches, check_converged: bool) -> list[TrustCheck]:
        """The checks on the first images, of these on those as large as the first."""
        prepared, count = [], 0
        for _, first, batch in batches.of_process():
            prepared.append(self.prepare(batch, first))
            count += len(prepared[-1][1])
            if count >= CHECKED_IMAGES:
                break
        if not prepared:
            return []
        pixels, labels = of_one_size(prepared, CHECKED_IMAGES)
        return run_trust_checks(
            self.classifier,
            pixels,
            labels,
            self.threat_model,
            self.attack,
            seed=self.seed,
            batch_size=len(prepared[0][1]),
            check_converged=check_converged,
        )
