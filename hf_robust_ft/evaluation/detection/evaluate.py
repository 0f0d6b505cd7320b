"""Clean, adversarial and expected box mAP of a detection model, as a `DetectionReport`; experimental."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from hf_robust_ft.attacks import APGD, attack_mode
from hf_robust_ft.attacks.batch_checks import check_batch, check_first_batch
from hf_robust_ft.attacks.box_checks import BoxCheck
from hf_robust_ft.attacks.detector import PixelDetector
from hf_robust_ft.attacks.pixels import PixelSpace
from hf_robust_ft.attacks.random_state import seeded_generator
from hf_robust_ft.attacks.threat_model import ThreatModel
from hf_robust_ft.evaluation.batches import NumberedBatches, stack_boxes
from hf_robust_ft.evaluation.classifier import as_pixel_model
from hf_robust_ft.evaluation.detection.measurement import DetectionMeasurement
from hf_robust_ft.evaluation.detection.report import DetectionReport
from hf_robust_ft.evaluation.detection.settings import check
from hf_robust_ft.evaluation.progress import progress_bar


def evaluate_detection(
    model: nn.Module,
    dataset_or_loader: Any,
    *,
    threat_model: ThreatModel,
    pixel_space: PixelSpace | None = None,
    epsilons: Sequence[float | str] | None = None,
    attack: APGD | None = None,
    attack_steps: int | None = None,
    batch_size: int = 16,
    device: torch.device | str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> DetectionReport:
    """Measure a detection model's box mAP under attack over eps in [0, eps_g]; experimental (`DetectionReport.limits`).

    What was found at an eps counts at every larger one, too, so no curve rises.

    Args:
        model: a transformers or PEFT model of `AutoModelForObjectDetection` that is DETR-like. It comes back in the
            mode it was in.
        dataset_or_loader: a map-style dataset of `pixel_values` (C, H, W) and `labels`, a dict of `class_labels` (n,)
            and `boxes` (n, 4) as image processors make them, or a DataLoader of such batches with a list of labels.
            What else a batch holds, as `pixel_mask`, is given to the model. Images of several sizes take batch_size=1.
        threat_model: norm and largest eps.
        pixel_space: how to undo the normalisation of `pixel_values`, e.g. `PixelSpace.from_processor(processor)`;
            without one they must be pixels in [0, 1], which is checked.
        epsilons: the grid, increasing from 0 to the threat model's eps; the default is that of `evaluate_robustness`.
        attack: an `APGD` with loss="set_loss" in place of the default: 10 steps from the clean image.
        attack_steps: in place of the attack's own.
        batch_size: images at a time, when given a dataset.
        device: where to run; the default is the model's own device.
        seed: of the attack's random starts, when it has any.
        progress: show a progress bar; where nobody watches, a line a minute.

    Returns:
        The scores, in [0, 1], at each eps of the grid; every figure is an upper bound.

    Raises:
        ImportError: torchmetrics or pycocotools is not installed (extra `detection`).
        ValueError: bad grid, a model without a loss of boxes, empty dataset, several processes, or a batch that cannot
            be measured (see `attacks.box_checks`).
    """
    settings = check(threat_model, epsilons=epsilons, attack=attack, attack_steps=attack_steps, seed=seed)
    if (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    ):
        raise ValueError("evaluate_detection measures in one process: start it without torchrun.")
    detector, pixel_space = as_pixel_model(model, pixel_space, PixelDetector)
    num_labels = getattr(getattr(detector.model, "config", None), "num_labels", None)
    if num_labels is None:
        raise ValueError("The model has no config.num_labels: give a model of AutoModelForObjectDetection.")
    batches = NumberedBatches(dataset_or_loader, batch_size, collate=stack_boxes)
    if device is not None:
        detector.to(device)
    device = next(detector.parameters()).device
    measured = DetectionMeasurement(settings, num_labels)
    bar = progress_bar(total=batches.num_images, desc="Robust evaluation", unit="images", disable=not progress)
    right = BoxCheck(needs_a_box=False)
    with attack_mode(detector), bar:
        for number, first, batch in batches.of_process():
            (check_first_batch if first == 0 else check_batch)(
                batch, pixel_space, num_labels, first=first, labels=right
            )
            batch = _on(batch, device)
            others = {name: value for name, value in batch.items() if name not in ("pixel_values", "labels")}
            of_batch = PixelDetector(
                detector.model, detector.pixel_space, batch["labels"], {**detector.model_inputs, **others}
            )
            pixels = pixel_space.clipped_pixels(batch["pixel_values"])
            measured.measure(of_batch, pixels, seeded_generator(device, seed, number))
            bar.update(len(pixels))
    if not measured.hashes:
        raise ValueError("The dataset is empty: there is nothing to evaluate.")
    return measured.report()


def _on(value: Any, device: torch.device) -> Any:
    """Tensors of a batch on the device, in whatever they stand."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, (list, tuple)):
        return [_on(each, device) for each in value]
    return {name: _on(each, device) for name, each in value.items()} if hasattr(value, "items") else value
