"""The evaluation of a segmentation model within `Trainer.evaluate()`."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from hf_robust_ft.attacks.batch_checks import check_batch, check_first_batch
from hf_robust_ft.evaluation.segmentation.counts import mean_iou, pixel_accuracy, pixel_counts

logger = logging.getLogger(__name__)


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
        return {
            f"{prefix}_clean_pixel_accuracy": float(pixel_accuracy(counts)),
            f"{prefix}_clean_mean_iou": float(mean_iou(counts)),
        }
