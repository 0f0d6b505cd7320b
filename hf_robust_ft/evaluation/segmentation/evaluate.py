"""Clean, adversarial and expected pixel accuracy and mean IoU of a segmentation model, as a `SegmentationReport`."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_robust_ft.attacks import APGD, attack_mode, fast_memory_format
from hf_robust_ft.attacks.pixels import PixelSpace
from hf_robust_ft.attacks.precision import SHORT_NAMES, autocast_dtype, evaluated_in
from hf_robust_ft.attacks.segmenter import PixelSegmenter
from hf_robust_ft.attacks.threat_model import ThreatModel
from hf_robust_ft.evaluation.batches import NumberedBatches, stack_masks
from hf_robust_ft.evaluation.classifier import as_pixel_model
from hf_robust_ft.evaluation.convergence import STEPS_LIMIT
from hf_robust_ft.evaluation.distributed import SharedWork
from hf_robust_ft.evaluation.segmentation.convergence import SegmentationConvergence
from hf_robust_ft.evaluation.segmentation.measure_batch import SegmentationWork, from_sparse
from hf_robust_ft.evaluation.segmentation.report import SegmentationReport
from hf_robust_ft.evaluation.segmentation.scoring import build_report
from hf_robust_ft.evaluation.segmentation.settings import check
from hf_robust_ft.evaluation.segmentation.trust_checks import run_segmentation_checks
from hf_robust_ft.evaluation.segmentation.worst_case import curves
from hf_robust_ft.evaluation.trust_verdicts import TrustCheck

CHECKED_IMAGES = 16  # each has many pixels, over which the checks count


def evaluate_segmentation(
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
    ignore_index: int | None = None,
    checks: bool = True,
    batch_size: int = 16,
    device: torch.device | str | None = None,
    seed: int = 0,
    results_dir: str | Path | None = None,
    class_names: Sequence[str] | None = None,
    progress: bool = True,
) -> SegmentationReport:
    """Measure a segmentation model's pixel accuracy and mean IoU under attack over eps in [0, eps_g].

    What was found at an eps counts at every larger one, too, so no curve rises. Under `torchrun` the batches are dealt
    out to the processes as by `evaluate_robustness`, and each returns the whole report.

    Args:
        model: a transformers, PEFT or plain semantic segmenter of `pixel_values`, or a `PixelSegmenter` (then
            `pixel_values` are pixels in [0, 1]). It comes back in the mode it was in.
        dataset_or_loader: a map-style dataset of `pixel_values` (C, H, W) and `labels` (H', W'), class indices, or a
            DataLoader of such batches. Logits are resized to the masks. Images of several sizes take batch_size=1.
        threat_model: norm and largest eps.
        pixel_space: how to undo the normalisation of `pixel_values`, e.g. `PixelSpace.from_processor(processor)`;
            without one they must be pixels in [0, 1], which is checked.
        epsilons: the grid, increasing from 0 to the threat model's eps; the default is that of `evaluate_robustness`.
        attack: in place of the protocol "paper"'s, with a loss of `attacks.dense_losses`.
        attack_steps: in place of the protocol's own, or "auto": doubled from 10 until neither score falls by a point
            at any eps. Each round attacks all images anew, and the report keeps what it came to.
        attack_steps_limit: the most steps of "auto".
        protocol: a key of `SEGMENTATION_PROTOCOLS`: "paper", APGD on the mean cross-entropy with 10 steps, or
            "reliable", the worst case over SEA's losses with 100 (arXiv 2306.12941).
        ignore_index: the label of pixels that count nowhere; the default is the model's own
            (`config.semantic_loss_ignore_index`, 255 in transformers), or 255.
        checks: run the trust checks in the end, on `CHECKED_IMAGES` images drawn by `seed`; of a source that cannot be
            read again, on the first batch's.
        batch_size: images at a time, when given a dataset.
        device: where to run; the default is the model's own device.
        seed: of the attack's random starts, when it has any, and of the checked images.
        results_dir: keep each batch's results in a file of its own in this folder; a run that was cut off continues
            there and ends in the same report.
        class_names: names for the report's per-class rows.
        progress: show a progress bar with the accuracy so far; where nobody watches, a line a minute.

    Returns:
        The scores, in [0, 1], at each eps of the grid and what they rest on; every figure is an upper bound.

    Raises:
        ValueError: unknown protocol, bad grid, a sharded model, empty dataset, or a batch an attack cannot work on,
            e.g. of an image without any labelled pixel (see `attacks.mask_checks`).
        OtherProcessFailed: another process raised.
    """
    if ignore_index is None:
        ignore_index = getattr(getattr(model, "config", None), "semantic_loss_ignore_index", 255)
    settings = check(
        threat_model,
        epsilons=epsilons,
        attack=attack,
        attack_steps=attack_steps,
        attack_steps_limit=attack_steps_limit,
        protocol=protocol,
        ignore_index=ignore_index,
        seed=seed,
    )
    with SharedWork() as processes:
        segmenter, pixel_space = as_pixel_model(model, pixel_space, PixelSegmenter)
        rounds = settings.rounds()
        repeatable = processes.world_size > 1 or results_dir is not None or rounds is not None
        batches = NumberedBatches(dataset_or_loader, batch_size, repeatable, stack_masks)
        work = SegmentationWork(segmenter, pixel_space, settings)
        if device is not None:
            segmenter.to(device)
        autocast = autocast_dtype(work.device)
        with attack_mode(segmenter), fast_memory_format(segmenter) as memory_format:
            measured = _measured(work, batches, processes, rounds, results_dir, progress)
            found_checks: list[TrustCheck] = []
            if checks and processes.rank == 0:
                found_checks = _trust_checks(work, batches, measured.worst_right[-1], rounds)
            found_checks = processes.gather(found_checks)[0] if checks else []
    return build_report(
        measured.worst_right,
        measured.lowest_iou,
        settings=settings,
        rounds=rounds,
        checks=found_checks,
        image_hashes=measured.image_hashes,
        passes=measured.passes,
        class_names=class_names,
        metadata={
            "memory_format": memory_format,
            **evaluated_in(segmenter, SHORT_NAMES.get(autocast), processes.rank == 0),
        },
    )


@dataclass
class _Measured:
    """What is left of N images at E eps, (E, N, 3, K) pixel counts for each score, their hashes, and what it cost."""

    worst_right: np.ndarray
    lowest_iou: np.ndarray
    image_hashes: list[str]
    passes: list[list[int]]


def _measured(
    work: SegmentationWork,
    batches: NumberedBatches,
    processes: SharedWork,
    rounds: SegmentationConvergence | None,
    results_dir: str | Path | None,
    progress: bool,
) -> _Measured:
    """All batches, with steps "auto" once more in each further round."""
    found: list[np.ndarray] = []  # of each round (E - 1, A, N, 3, K)
    passes: list[list[int]] = []
    while True:
        with work.stored_in(results_dir, batches, processes) as store:
            records = _of_all_processes(processes, work.all_of(batches, processes, store, progress))
        found.append(np.concatenate([from_sparse(record["found"]) for record in records], axis=2))
        passes += [record["passes"] for record in records]
        clean = np.concatenate([from_sparse(record["clean"]) for record in records])
        worst_right, lowest_iou = curves(np.concatenate(found, axis=1), clean)
        attacks = None if rounds is None else rounds.after(worst_right, lowest_iou)
        if attacks is None:
            hashes = [each for record in records for each in record["image_hashes"]]
            return _Measured(worst_right, lowest_iou, hashes, passes)
        work = dataclasses.replace(work, settings=dataclasses.replace(work.settings, attacks=attacks))


def _of_all_processes(processes: SharedWork, records: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """What all processes keep of each batch, in the order of the data.

    Raises:
        ValueError: no process had a batch.
    """
    everyones = {number: record for own in processes.gather(records) for number, record in own.items()}
    if not everyones:
        raise ValueError("The dataset is empty: there is nothing to evaluate.")
    return [record for _, record in sorted(everyones.items())]


def _trust_checks(
    work: SegmentationWork, batches: NumberedBatches, reported: np.ndarray, rounds: SegmentationConvergence | None
) -> list[TrustCheck]:
    """The checks on a few images, of these on those as large as the first.

    Args:
        reported: (N, 3, K), what is left of each image at eps_g.
    """
    if batches.looks_up:
        rng = np.random.default_rng(work.settings.seed)
        positions = sorted(rng.permutation(len(reported))[:CHECKED_IMAGES].tolist())
        found = [(*work.prepare(batch, position), position) for position, batch in batches.examples(positions)]
    else:
        pixels, labels = work.prepare(next(batches.of_process())[2], 0)
        parts = zip(pixels[:CHECKED_IMAGES].split(1), labels[:CHECKED_IMAGES].split(1), strict=True)
        found = [(*pair, position) for position, pair in enumerate(parts)]
    same = [each for each in found if each[0].shape == found[0][0].shape and each[1].shape == found[0][1].shape]
    pixels, labels = torch.cat([each[0] for each in same]), torch.cat([each[1] for each in same])
    return run_segmentation_checks(
        work.of_size(labels),
        pixels,
        labels,
        work.settings if rounds is None else dataclasses.replace(work.settings, attacks=rounds.attacks),
        converged=None if rounds is None else rounds.check(),
        reported=reported[[position for *_, position in same]],
        batch_size=work.largest_batch,
    )
