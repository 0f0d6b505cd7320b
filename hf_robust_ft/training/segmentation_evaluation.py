"""The evaluation of a segmentation model within `Trainer.evaluate()`, as `evaluate_segmentation` measures it."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from hf_robust_ft.attacks import APGD
from hf_robust_ft.attacks.batch_checks import check_batch, check_first_batch
from hf_robust_ft.attacks.pass_meter import PassMeter
from hf_robust_ft.evaluation.reliability import is_reliable
from hf_robust_ft.evaluation.segmentation.counts import mean_iou, pixel_accuracy, pixel_counts
from hf_robust_ft.evaluation.segmentation.report import SegmentationReport
from hf_robust_ft.evaluation.segmentation.scoring import build_report
from hf_robust_ft.evaluation.segmentation.settings import SegmentationSettings, check
from hf_robust_ft.evaluation.segmentation.trust_checks import run_segmentation_checks
from hf_robust_ft.evaluation.segmentation.worst_case import curves, fewest_right
from hf_robust_ft.evaluation.trust_verdicts import TrustCheck
from hf_robust_ft.provenance.class_names import class_names
from hf_robust_ft.provenance.image_hashes import as_hex, hash_images
from hf_robust_ft.reporting.examples import remove_examples
from hf_robust_ft.reporting.model_card import EXAMPLES
from hf_robust_ft.reporting.segmentation.overlays import save_overlays
from hf_robust_ft.training.evaluation_facts import data_facts, precision_facts

SHOWN_EXAMPLES = 4  # overlays beside the card, of the images that the trust checks look at
CHECKED_IMAGES = 16  # each has many pixels, over which the checks count


class SegmentationEvaluation:
    """One evaluation by the Trainer: check and measure each batch, gather what all processes found, report.

    All processes make every call, each with its own batches.

    Args:
        trainer: the `AdversarialTrainer`, for its arguments, model, adversary and processes.
        dataloader: what is evaluated.
    """

    def __init__(self, trainer: Any, dataloader: DataLoader):
        self.trainer, self.dataloader = trainer, dataloader
        self.args, self.accelerator = trainer.args, trainer.accelerator
        self.adversary, self.model, self.task = trainer.adversary, trainer.model, trainer.task
        args, self.in_training = trainer.args, trainer.is_in_train
        self.attacks = args.robust_eval == "epoch" or (args.robust_eval == "end" and not self.in_training)
        self.attacks = self.attacks and len(args.evaluation_grid) > 1
        self.settings = settings_of(args, self.task.ignore_index)
        self.outputs: Any = None  # of the model for the batch at hand, where the trainer saw them
        self.num_classes: int | None = None  # the width of the logits
        self._gathered: list[tuple[Tensor, ...]] = []  # of every process: counts before and under attack, and hashes
        self._passes = [0, 0]  # images in this process's forwards and gradients
        # Of this process, those whose hashes are lowest: hash, image, mask, and what is left of it.
        self._checked: list[tuple[str, Tensor, Tensor, np.ndarray]] = []

    # ---- Check -----------------------------------------------------------------------

    def check(self, inputs: Mapping[str, Any]) -> None:
        """Raise a ValueError for a batch that cannot be measured, the first one more strictly."""
        self.adversary.rehearse(self.model, inputs, attacked=self.attacks)
        check_this = check_batch if self._gathered else check_first_batch
        num_labels = self.adversary.num_labels(self.model)
        check_this(inputs, self.adversary.pixel_space, num_labels, labels=self.task.label_check)

    # ---- Measure ---------------------------------------------------------------------

    def measure(self, inputs: Mapping[str, Any]) -> None:
        """Attack a batch at every eps, and gather what was found from all processes."""
        segmenter = self.adversary.classifier(self.model, inputs)
        pixels = self.adversary.pixel_space.clipped_pixels(inputs["pixel_values"])
        labels = self.task.attack_labels(inputs["labels"])
        logits = self._clean_logits(segmenter, pixels, labels)
        self.num_classes = logits.shape[1]
        clean = pixel_counts(logits.argmax(1), labels, self.num_classes)
        found = []
        with self.adversary.mode(self.model), PassMeter(segmenter) as meter:
            for eps in self.settings.epsilons[1:] if self.attacks else ():
                for attack in self.settings.attacks:
                    result = attack(segmenter, pixels, labels, self.settings.threat_model, eps=eps)
                    found.append(pixel_counts(result.predictions, labels, self.num_classes))
        self._passes = [self._passes[0] + meter.forwards, self._passes[1] + meter.gradients]
        found = torch.stack(found, 1) if found else clean[:, None][:, :0]
        hashes = hash_images(pixels)
        gathered = self.accelerator.gather_for_metrics((clean, found, hashes.to(pixels.device)))
        self._gathered.append(tuple(values.cpu() for values in gathered))
        if not segmenter.model_inputs:  # with these an image cannot be looked at alone
            self._keep(pixels, labels, as_hex(hashes), torch.cat([clean[:, None], found], 1).cpu().numpy())

    def _clean_logits(self, segmenter: Callable[[Tensor], Tensor], pixels: Tensor, labels: Tensor) -> Tensor:
        """Those of the evaluation's own forward: what Trainer returns is all outputs in their order, or fewer."""
        outputs, self.outputs = self.outputs, None
        with torch.no_grad():
            if outputs is not None:
                return self.task.training_logits(outputs, labels)
            with self.trainer.compute_loss_context_manager():  # a compute_loss of the user's, without ours
                return segmenter(pixels)

    def _keep(self, pixels: Tensor, labels: Tensor, hashes: list[str], counts: np.ndarray) -> None:
        """Those to be checked of all so far, as large as the first: a draw that no order of the images has a say in."""
        worst = fewest_right(counts.swapaxes(0, 1))
        found = zip(hashes, pixels.cpu(), labels.cpu(), worst, strict=True)
        first = (pixels[0], labels[0]) if not self._checked else self._checked[0][1:3]
        same = [each for each in found if each[1].shape == first[0].shape and each[2].shape == first[1].shape]
        self._checked = sorted([*self._checked, *same], key=lambda each: each[0])[:CHECKED_IMAGES]

    # ---- Report ----------------------------------------------------------------------

    def conclude(self, prefix: str) -> dict[str, float]:
        """What `evaluate()` is to return beside Trainer's own; the trainer keeps the report, where attacks ran."""
        if not self._gathered:  # no batch held labels
            return {}
        if self.attacks:
            report = self._report()
            self.trainer._keep_report(report, self._overlays_writer())
            metrics = {name: getattr(report, name) for name in self.task.metrics}
            metrics["reliable"] = float(is_reliable(report))
        else:
            total = torch.cat([clean for clean, *_ in self._gathered]).sum(0).numpy()
            metrics = {"clean_pixel_accuracy": float(pixel_accuracy(total)), "clean_mean_iou": float(mean_iou(total))}
        return {f"{prefix}_{name}": value for name, value in metrics.items()}

    def _report(self) -> SegmentationReport:
        clean, found, hashes = (torch.cat(parts).numpy() for parts in zip(*self._gathered, strict=True))
        shape = (len(clean), len(self.settings.epsilons) - 1, len(self.settings.attacks), *clean.shape[1:])
        worst_right, lowest_iou = curves(np.moveaxis(found.reshape(shape), 0, 2), clean)
        passes = torch.tensor([self._passes], device=self.accelerator.device)
        return build_report(
            worst_right,
            lowest_iou,
            settings=self.settings,
            checks=self._trust_checks(),
            image_hashes=as_hex(torch.from_numpy(hashes)),
            passes=self.accelerator.gather(passes).tolist(),
            class_names=class_names(getattr(self.model, "config", None), self.num_classes),
            metadata=self.trainer.facts().merged(
                data_facts(getattr(self.dataloader, "dataset", None), self.in_training),
                precision_facts(self.model, self.accelerator, self.in_training),
            ),
        )

    def _trust_checks(self) -> list[TrustCheck]:
        """After training; under FSDP, whose forward waits for every rank, none."""
        if self.in_training or self.adversary.is_sharded or not self.attacks or not self._checked:
            return []
        pixels, labels, worst = self._checked_images()
        with self.adversary.mode(self.model):
            return run_segmentation_checks(
                self.adversary.classifier(self.model, {"labels": labels}),
                pixels,
                labels,
                self.settings,
                reported=worst,
                batch_size=self.args.per_device_eval_batch_size,
            )

    def _checked_images(self) -> tuple[Tensor, Tensor, np.ndarray]:
        device = self.accelerator.device
        _, pixels, labels, worst = zip(*self._checked, strict=True)
        return torch.stack(pixels).to(device), torch.stack(labels).to(device), np.stack(worst)

    def _overlays_writer(self) -> Callable[[str], None]:
        """Puts overlays of attacked images into a folder. The trainer keeps it: it holds these images and no model."""
        is_shown = not self.adversary.is_sharded and bool(self._checked)
        images = tuple(each[:SHOWN_EXAMPLES] for each in self._checked_images()[:2]) if is_shown else None
        names = class_names(getattr(self.model, "config", None), self.num_classes)
        return partial(_write_overlays, self.trainer, images, self.settings.attacks[0], names)


def _write_overlays(
    trainer: Any, images: tuple[Tensor, Tensor] | None, attack: APGD, names: list[str], folder: str
) -> None:
    """Take pictures of other weights out of a folder, and put overlays of these images and masks there."""
    pictures = Path(folder, EXAMPLES)
    remove_examples(pictures)
    if images is None:
        return
    pixels, labels = images
    segmenter = trainer.adversary.classifier(trainer.model, {"labels": labels})
    threat_model = trainer.args.threat_model
    save_overlays(segmenter, pixels, labels, pictures, threat_model=threat_model, attack=attack, class_names=names)


def settings_of(args: Any, ignore_index: int | None) -> SegmentationSettings:
    """How the arguments of training have the evaluation, as `evaluate_segmentation` is told.

    Raises:
        ValueError: as `evaluation.segmentation.settings.check`.
    """
    return check(
        args.threat_model,
        epsilons=args.evaluation_grid,
        attack=args.eval_attack if args.eval_protocol == "paper" else None,
        protocol=args.eval_protocol,
        ignore_index=ignore_index,
        seed=args.seed,
    )
