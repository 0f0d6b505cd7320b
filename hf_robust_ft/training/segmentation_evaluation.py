"""The evaluation of a segmentation model within `Trainer.evaluate()`: its own figures, and a report under attack."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from hf_robust_ft.attacks.batch_checks import check_batch, check_first_batch
from hf_robust_ft.data.source_hashes import source_digest
from hf_robust_ft.data.sources import loaded_facts
from hf_robust_ft.evaluation.reliability import is_reliable
from hf_robust_ft.evaluation.segmentation.counts import mean_iou, pixel_accuracy, pixel_counts
from hf_robust_ft.evaluation.segmentation.evaluate import evaluate_segmentation
from hf_robust_ft.evaluation.segmentation.report import SegmentationReport
from hf_robust_ft.provenance.class_names import class_names
from hf_robust_ft.reporting.segmentation.overlays import draw_overlays

SHOWN_EXAMPLES = 4  # overlays beside the card


class SegmentationEvaluation:
    """One evaluation by the Trainer: check and measure each batch, conclude.

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
        attacks = args.robust_eval == "epoch" or (args.robust_eval == "end" and not self.in_training)
        self.attacks = attacks and len(args.evaluation_grid) > 1
        self.outputs: Any = None  # of the model for the batch at hand, where the trainer saw them
        self._gathered: list[Tensor] = []  # of every process

    def check(self, inputs: Mapping[str, Any]) -> None:
        """Raise a ValueError for a batch that cannot be measured, the first one more strictly."""
        self.adversary.rehearse(self.model, inputs, attacked=False)
        check = check_batch if self._gathered else check_first_batch
        num_labels = self.adversary.num_labels(self.model)
        check(inputs, self.adversary.pixel_space, num_labels, labels=self.task.label_check)

    def measure(self, inputs: Mapping[str, Any]) -> None:
        """Count the pixels of a batch, and gather the counts from all processes."""
        logits = self._logits(inputs)
        counts = pixel_counts(logits.argmax(1), self.task.attack_labels(inputs["labels"]), logits.shape[1])
        self._gathered.append(self.accelerator.gather_for_metrics(counts).cpu())

    def _logits(self, inputs: Mapping[str, Any]) -> Tensor:
        outputs, self.outputs = self.outputs, None
        if outputs is not None:
            return self.task.training_logits(outputs, inputs["labels"])
        with torch.no_grad(), self.trainer.compute_loss_context_manager():  # a compute_loss of the user's, without ours
            return self.adversary.classifier(self.model, inputs)(
                self.adversary.pixel_space.clipped_pixels(inputs["pixel_values"])
            )

    def conclude(self, prefix: str) -> dict[str, float]:
        """What `evaluate()` is to return beside Trainer's own."""
        if not self._gathered:  # no batch held labels
            return {}
        counts = torch.cat(self._gathered).sum(0).numpy()
        metrics = {"clean_pixel_accuracy": float(pixel_accuracy(counts)), "clean_mean_iou": float(mean_iou(counts))}
        if self.attacks:
            report = self._report()
            self.trainer._keep_report(report, self._overlays(report))
            metrics |= {name: getattr(report, name) for name in self.task.metrics if name not in metrics}
            metrics["reliable"] = float(is_reliable(report))
        return {f"{prefix}_{name}": value for name, value in metrics.items()}

    def _report(self) -> SegmentationReport:
        """What `evaluate_segmentation` finds on the same images, read again; trust checks after training alone."""
        dataset = self.dataloader.dataset
        report = evaluate_segmentation(
            self.model,
            dataset,
            threat_model=self.args.threat_model,
            pixel_space=self.adversary.pixel_space,
            epsilons=self.args.evaluation_grid,
            attack=self.args.eval_attack,
            protocol=self.args.eval_protocol,
            ignore_index=self.task.ignore_index,
            checks=not self.in_training,
            batch_size=self.args.per_device_eval_batch_size,
            seed=self.args.seed,
            class_names=class_names(getattr(self.model, "config", None)),
        )
        digest = None if self.in_training else source_digest(dataset)
        data = loaded_facts(dataset) | ({"source_digest": digest} if digest else {})
        measured_in = dict(report.metadata)
        return report.with_metadata(**self.trainer.facts().merged(data, measured_in))

    def _overlays(self, report: SegmentationReport) -> Any:
        """Puts overlays into a folder; the trainer keeps it."""
        return partial(
            draw_overlays,
            self.model,
            self.adversary.pixel_space,
            self.dataloader.dataset,
            count=SHOWN_EXAMPLES,
            ignore_index=self.task.ignore_index,
            threat_model=self.args.threat_model,
            attack=self.args.eval_attack,
            class_names=class_names(getattr(self.model, "config", None)),
        )
