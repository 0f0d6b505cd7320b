"""Clean, adversarial and expected robustness of a model over a dataset, as a `RobustnessReport`."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_robust_ft.attacks import APGD, attack_mode, fast_memory_format
from hf_robust_ft.attacks.pixels import PixelSpace
from hf_robust_ft.attacks.precision import SHORT_NAMES, autocast_dtype, evaluated_in
from hf_robust_ft.attacks.threat_model import ThreatModel
from hf_robust_ft.evaluation.batches import NumberedBatches
from hf_robust_ft.evaluation.checked_images import CHECKED_IMAGES, ClassReservoir, draw_by_class
from hf_robust_ft.evaluation.classifier import as_classifier
from hf_robust_ft.evaluation.convergence import STEPS_LIMIT, Convergence, with_convergence
from hf_robust_ft.evaluation.distributed import SharedWork
from hf_robust_ft.evaluation.measure_batch import KEYS, EvaluationWork
from hf_robust_ft.evaluation.protocols import closing_attacks
from hf_robust_ft.evaluation.report import RobustnessReport
from hf_robust_ft.evaluation.scoring import build_report
from hf_robust_ft.evaluation.settings import EvaluationSettings, check
from hf_robust_ft.evaluation.stored_examples import ExampleFolder
from hf_robust_ft.evaluation.trust_verdicts import TrustCheck
from hf_robust_ft.provenance.image_hashes import combined_hash


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
    examples_dir: str | Path | None = None,
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
        attack: the default is the paper's, APGD-CE with 10 steps from the clean image, under L1 with larger eps first.
        attack_steps: in place of the attack's own; "auto" doubles them, from 10, on what still stands until the
            accuracy settles (`convergence.Convergence`), for which the source must bring the same batches again.
        attack_steps_limit: the most steps of "auto".
        protocol: a key of `PROTOCOLS`: "paper" (comparable), "exact" (stronger, no quadrature error) or "reliable" (the
            worst case of four attacks, the first as with `attack_steps="auto"`, which it implies).
        distributions: also report expected robustness under these distributions of eps, e.g. "beta:2,5", or as any
            weights of any eps "weights:0=1,2/255=3" or {0: 1, "2/255": 3}; see
            `RobustnessReport.expected_robustness_under`.
        autoattack: run standard AutoAttack at eps_g on what the protocol leaves standing of so many images, drawn as
            for the trust checks; the source must bring the same batches again.
        checks: run `trust_checks` in the end, on `CHECKED_IMAGES` drawn by `seed`, equally many of each class; under
            "exact" and "auto" the second opinion is of what these leave standing.
        batch_size: images at a time, when given a dataset; a loader's own size holds for the checks too.
        device: where to run; the default is the model's own device.
        seed: of the attack's random starts, when it has any, and of AutoAttack.
        results_dir: keep each batch's results in a file of its own in this folder; a run that was cut off continues
            there and ends in the same report.
        examples_dir: store the example found for each image in this folder (`stored_examples`), by which others can
            check the report without an attack (`verification.verify_report`, `hf-robust-ft verify`). 4 bytes a
            channel of each pixel of the images that fall; resumable where there is a `results_dir`.
        class_names: names for the report's per-class rows.
        progress: show a progress bar with the accuracy so far; where nobody watches, a line a minute.

    Returns:
        The accuracies, in [0, 1], at each eps of the grid and what they rest on; every figure is an upper bound.

    Raises:
        ValueError: unknown protocol, bad grid, a sharded model, empty dataset, or a batch an attack cannot work on
            (see `batch_checks`).
        OtherProcessFailed: another process raised.
    """
    settings = check(
        threat_model,
        epsilons=epsilons,
        attack=attack,
        attack_steps=attack_steps,
        attack_steps_limit=attack_steps_limit,
        protocol=protocol,
        distributions=distributions,
        autoattack=autoattack,
        seed=seed,
    )
    return evaluate_as(
        settings,
        model,
        dataset_or_loader,
        pixel_space=pixel_space,
        checks=checks,
        batch_size=batch_size,
        device=device,
        results_dir=results_dir,
        examples_dir=examples_dir,
        class_names=class_names,
        progress=progress,
    )


def evaluate_as(
    settings: EvaluationSettings,
    model: nn.Module,
    dataset_or_loader: Any,
    *,
    pixel_space: PixelSpace | None = None,
    checks: bool = True,
    batch_size: int = 64,
    device: torch.device | str | None = None,
    results_dir: str | Path | None = None,
    examples_dir: str | Path | None = None,
    class_names: Sequence[str] | None = None,
    progress: bool = True,
) -> RobustnessReport:
    """`evaluate_robustness` with settings that were checked: measure, gather, report."""
    with SharedWork() as processes:
        classifier, pixel_space = as_classifier(model, pixel_space)
        rounds = settings.rounds()
        repeats = rounds is not None or settings.autoattack > 0
        repeatable = processes.world_size > 1 or results_dir is not None or repeats
        batches = NumberedBatches(dataset_or_loader, batch_size, repeatable)
        work = EvaluationWork(classifier, pixel_space, settings, settings.attack)
        work.examples = None if examples_dir is None else ExampleFolder(examples_dir)
        if device is not None:
            classifier.to(device)
        autocast = autocast_dtype(work.device)
        with attack_mode(classifier), fast_memory_format(classifier) as memory_format:
            rows, found_checks = _measured(work, batches, processes, rounds, results_dir, checks, progress)
    return build_report(
        rows["labels"],
        rows["smallest_eps"],
        rows["wrong_classes"],
        threat_model=settings.threat_model,
        epsilons=settings.epsilons,
        attack=settings.attack if rounds is None else rounds.attack,
        protocol=settings.protocol,
        distributions=settings.distributions,
        autoattack=rows["autoattack"],
        autoattack_images=rows.get("autoattack_images", ()),
        image_hashes=rows["image_hashes"],
        found_again=rows["found_again"],
        passes=rows["passes"],
        checks=found_checks,
        convergence=None if rounds is None else rounds.described(),
        class_names=class_names,
        metadata={
            "memory_format": memory_format,
            **evaluated_in(classifier, SHORT_NAMES.get(autocast), processes.rank == 0),
        },
    )


def _measured(
    work: EvaluationWork,
    batches: NumberedBatches,
    processes: SharedWork,
    rounds: Convergence | None,
    results_dir: str | Path | None,
    checks: bool,
    progress: bool,
) -> tuple[dict[str, list], list[TrustCheck]]:
    """All batches, and what still stands of them in each further round, then the trust checks: its rows, the checks."""
    first_work = work
    if checks and not batches.looks_up:
        work.drawn = ClassReservoir(CHECKED_IMAGES, work.settings.seed)
    repeated = rounds is not None or work.settings.autoattack > 0

    def once_more(work: EvaluationWork, records: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
        with work.stored_in(results_dir, batches, processes) as store:
            return work.all_of(batches, processes, store, progress, records, repeated=True)

    with work.stored_in(results_dir, batches, processes) as store:
        records = work.all_of(batches, processes, store, progress, repeated=repeated)
        rows = _of_all_processes(processes, records)
        if rounds is not None:
            num_labels = max(each or 0 for each in processes.gather(first_work.num_labels))  # 0 where one had no batch
            rounds.closing = closing_attacks(work.settings.protocol, work.settings.threat_model.norm, num_labels)
        while rounds is not None and (next_attack := rounds.after(rows["smallest_eps"])) is not None:
            work = dataclasses.replace(work, attack=next_attack, rounds_done=rounds.rounds_done)
            records = once_more(work, records)
            rows = _of_all_processes(processes, records)
        if work.settings.autoattack:
            drawn = draw_by_class(rows["labels"], work.settings.autoattack, work.settings.seed)
            work = dataclasses.replace(work, asked=frozenset(drawn), rounds_done=work.rounds_done + 1)
            records = once_more(work, records)
            rows = _of_all_processes(processes, records) | {"autoattack_images": drawn}
    if work.examples is not None:
        _finish_examples(work.examples, processes, records, rows["image_hashes"])
    found: list[TrustCheck] = []
    if checks and processes.rank == 0:
        found = first_work.trust_checks(batches, rows, check_converged=rounds is None, progress=progress)
    found = processes.gather(found)[0] if checks else []
    return rows, found if rounds is None or not checks else with_convergence(found, rounds)


def _of_all_processes(processes: SharedWork, records: dict[int, dict[str, Any]]) -> dict[str, list]:
    """What all processes found, in the order of the data.

    Raises:
        ValueError: no process had a batch.
    """
    everyones = {number: record for own in processes.gather(records) for number, record in own.items()}
    if not everyones:
        raise ValueError("The dataset is empty: there is nothing to evaluate.")
    rows = {key: [value for _, record in sorted(everyones.items()) for value in record[key]] for key in KEYS}
    rows["smallest_eps"] = [np.inf if eps is None else eps for eps in rows["smallest_eps"]]
    return rows


def _finish_examples(
    examples: ExampleFolder, processes: SharedWork, records: dict[int, dict[str, Any]], image_hashes: list[str]
) -> None:
    """Write the index, once all processes have stored what they found."""
    own = dict(shard for record in records.values() for shard in record["examples"])
    everyones = {name: sha256 for shards in processes.gather(own) for name, sha256 in shards.items()}
    if processes.rank == 0:
        examples.finish(everyones, image_digest=combined_hash(image_hashes))
