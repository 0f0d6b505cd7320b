"""The evaluation of a detection model within `Trainer.evaluate()`, as `evaluate_detection` measures it."""

from collections.abc import Mapping
from typing import Any

from torch.utils.data import DataLoader

from hf_robust_ft.attacks.batch_checks import check_batch, check_first_batch
from hf_robust_ft.attacks.random_state import seeded_generator
from hf_robust_ft.evaluation.detection.measurement import DetectionMeasurement
from hf_robust_ft.evaluation.detection.settings import DetectionSettings, check, detection_attack
from hf_robust_ft.training.evaluation_facts import data_facts, precision_facts


class DetectionEvaluation:
    """One evaluation by the Trainer, in one process: check and measure each batch, report.

    Args:
        trainer: the `AdversarialTrainer`, for its arguments, model and adversary.
        dataloader: what is evaluated.
    """

    def __init__(self, trainer: Any, dataloader: DataLoader):
        self.trainer, self.dataloader = trainer, dataloader
        self.adversary, self.model, self.task = trainer.adversary, trainer.model, trainer.task
        args, self.in_training = trainer.args, trainer.is_in_train
        self.attacks = args.robust_eval == "epoch" or (args.robust_eval == "end" and not self.in_training)
        self.attacks = self.attacks and len(args.evaluation_grid) > 1
        self.outputs: Any = None  # of the model for the batch at hand, where the trainer saw them
        self.measured = DetectionMeasurement(detection_settings(args), self.model.config.num_labels, self.attacks)

    def check(self, inputs: Mapping[str, Any]) -> None:
        """Raise a ValueError for a batch that cannot be measured, the first one more strictly."""
        self.adversary.rehearse(self.model, inputs, attacked=self.attacks)
        check_this = check_batch if self.measured.hashes else check_first_batch
        num_labels = self.adversary.num_labels(self.model)
        check_this(inputs, self.adversary.pixel_space, num_labels, labels=self.task.label_check)

    def measure(self, inputs: Mapping[str, Any]) -> None:
        """Attack a batch at every eps."""
        detector = self.adversary.classifier(self.model, inputs)
        pixels = self.adversary.pixel_space.clipped_pixels(inputs["pixel_values"])
        outputs, self.outputs = self.outputs, None
        generator = seeded_generator(pixels.device, self.measured.settings.seed, len(self.measured.hashes))
        with self.adversary.mode(self.model):
            self.measured.measure(detector, pixels, generator, outputs if hasattr(outputs, "pred_boxes") else None)

    def conclude(self, prefix: str) -> dict[str, float]:
        """What `evaluate()` is to return beside Trainer's own; the trainer keeps the report, where attacks ran."""
        if not self.measured.hashes:  # no batch held labels
            return {}
        if self.attacks:
            report = self.measured.report(
                self.trainer.facts().merged(
                    data_facts(getattr(self.dataloader, "dataset", None), self.in_training),
                    precision_facts(self.model, self.trainer.accelerator, self.in_training),
                )
            )
            self.trainer._keep_report(report, lambda folder: None)
            metrics = {name: getattr(report, name) for name in self.task.metrics}
        else:
            clean = self.measured.clean
            metrics = {"clean_map": clean.map, "clean_map_50": clean.map_50}
        return {f"{prefix}_{name}": value for name, value in metrics.items()}


def detection_settings(args: Any) -> DetectionSettings:
    """How the arguments of training have the evaluation, as `evaluate_detection` is told.

    Raises:
        ValueError: as `evaluation.detection.settings.check`.
    """
    attack = detection_attack(args.norm, args.eval_attack.steps)
    return check(args.threat_model, epsilons=args.evaluation_grid, attack=attack, seed=args.seed)
