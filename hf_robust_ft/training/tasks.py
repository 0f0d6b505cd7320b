"""What differs between the tasks of a model, in one table; the Trainer and all around it are the same for each.

A model's class says its task: those of `AutoModelForSemanticSegmentation` have one label a pixel, those of
`AutoModelForObjectDetection` boxes, all others one label an image.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_INSTANCE_SEGMENTATION_MAPPING_NAMES,
    MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
    MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES,
)

from hf_robust_ft.attacks.batch_checks import check_labels
from hf_robust_ft.attacks.box_checks import BoxCheck
from hf_robust_ft.attacks.dense_losses import ignored_as_negative
from hf_robust_ft.attacks.detector import PixelDetector
from hf_robust_ft.attacks.losses import check_of_images
from hf_robust_ft.attacks.mask_checks import MaskCheck
from hf_robust_ft.attacks.model_calls import extract_dense_logits
from hf_robust_ft.attacks.pixels import PixelClassifier, PixelModel, PixelSpace
from hf_robust_ft.attacks.rehearsal import count_classes
from hf_robust_ft.attacks.segmenter import PixelSegmenter, resized
from hf_robust_ft.training.classifier_checks import check_own_loss
from hf_robust_ft.training.compiled_model import settle_loss
from hf_robust_ft.training.detection_checks import NOT_PUBLISHED, check_boxes_fit, check_detecting, settle_detection
from hf_robust_ft.training.detection_evaluation import DetectionEvaluation
from hf_robust_ft.training.objectives.passes import logits_of, scaled_mean
from hf_robust_ft.training.robust_evaluation import RobustEvaluation
from hf_robust_ft.training.segmentation_checks import check_masks_fit, settle_segmentation
from hf_robust_ft.training.segmentation_evaluation import SegmentationEvaluation, settings_of


@dataclass(frozen=True)
class Task:
    """What training under attack asks of a task; made for a model by `task_of`.

    Attributes:
        name: the Hub's `pipeline_tag`.
        cross_entropy: the attack loss that is the labels' cross-entropy, or else the model's own.
        metrics: what `evaluate()` measures of it, clean first.
        evaluation: what measures them, of (trainer, dataloader).
        least_classes: fewest that there is anything to confuse among.
        ignore_index: the label that the model's own loss leaves out; None where each counts.
    """

    name: ClassVar[str]
    cross_entropy: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]
    evaluation: ClassVar[Callable[[Any, Any], Any]]
    least_classes: ClassVar[int] = 2
    ignore_index: int | None = None

    def settle(self, args: Any) -> None:
        """Raise a ValueError for arguments that mean nothing here, and enter what they leave to the task."""
        raise NotImplementedError

    @property
    def label_check(self) -> Callable[..., None]:
        """What checks a batch's labels, as `batch_checks.check_labels`; it travels to the loader's workers."""
        raise NotImplementedError

    def check_trainer(self, trainer: Any) -> None:
        """Raise a ValueError for what shows in a built trainer only."""

    def check_publishing(self) -> None:
        """Raise a ValueError where models of the task are not published yet."""

    def count_classes(self, on_pixels: PixelModel, pixels: Tensor, attacked: bool) -> int:
        """K, from a forward; a ValueError as `rehearsal.count_classes`."""
        return count_classes(on_pixels, pixels, attacked)

    def check_first(self, model: nn.Module, inputs: Mapping[str, Any]) -> None:
        """Raise a ValueError for a first batch that the model's own loss will not take."""

    def before_compiling(self, model: nn.Module) -> None:
        """Say what the model would find out at its first loss, and for which it would be compiled once more."""

    def on_pixels(
        self, model: nn.Module, pixel_space: PixelSpace, labels: Tensor, model_inputs: dict[str, Any]
    ) -> PixelModel:
        """What is attacked: the model of pixels in [0, 1]."""
        raise NotImplementedError

    def attack_labels(self, labels: Tensor) -> Tensor:
        """A batch's labels as attacks take them."""
        return labels

    def training_logits(self, outputs: Any, labels: Tensor) -> Tensor:
        """Those of a model in training mode, one set for each label; a ValueError where there is no one set."""
        raise NotImplementedError

    def mean(self, values: Tensor, labels: Tensor, per_item: Tensor | float | None = None) -> Tensor:
        """The mean of values, one a label, over the labels that count; with `per_item` their sum times that."""
        return scaled_mean(values, per_item)


class ImageClassification(Task):
    """One label an image."""

    name = "image-classification"
    cross_entropy = "ce"
    metrics = ("clean_accuracy", "adversarial_accuracy", "expected_robustness")
    evaluation = RobustEvaluation

    def settle(self, args: Any) -> None:
        check_of_images(args.attack_loss)

    @property
    def label_check(self) -> Callable[..., None]:
        return check_labels

    def check_trainer(self, trainer: Any) -> None:
        check_own_loss(trainer.model, trainer.compute_loss_func is not None)

    def before_compiling(self, model: nn.Module) -> None:
        settle_loss(model)

    def on_pixels(
        self, model: nn.Module, pixel_space: PixelSpace, labels: Tensor, model_inputs: dict[str, Any]
    ) -> PixelClassifier:
        return PixelClassifier(model, pixel_space, model_inputs)

    def training_logits(self, outputs: Any, labels: Tensor) -> Tensor:
        return logits_of(outputs)


class ImageSegmentation(Task):
    """One label a pixel."""

    name = "image-segmentation"
    cross_entropy = "pixel_ce"
    metrics = tuple(
        f"{which}_{what}" for what in ("pixel_accuracy", "mean_iou") for which in ("clean", "adversarial", "expected")
    )
    evaluation = SegmentationEvaluation

    def settle(self, args: Any) -> None:
        settle_segmentation(args)
        settings_of(args, self.ignore_index)

    @property
    def label_check(self) -> Callable[..., None]:
        return MaskCheck(self.ignore_index)

    def check_first(self, model: nn.Module, inputs: Mapping[str, Any]) -> None:
        check_masks_fit(model, inputs)

    def on_pixels(
        self, model: nn.Module, pixel_space: PixelSpace, labels: Tensor, model_inputs: dict[str, Any]
    ) -> PixelSegmenter:
        return PixelSegmenter(model, pixel_space, tuple(labels.shape[-2:]), model_inputs)

    def attack_labels(self, labels: Tensor) -> Tensor:
        return ignored_as_negative(labels, self.ignore_index)

    def training_logits(self, outputs: Any, labels: Tensor) -> Tensor:
        return resized(extract_dense_logits(outputs), tuple(labels.shape[-2:]))

    def mean(self, values: Tensor, labels: Tensor, per_item: Tensor | float | None = None) -> Tensor:
        counts = self.attack_labels(labels) >= 0
        return scaled_mean(values.masked_fill(~counts, 0.0), 1 / counts.sum() if per_item is None else per_item)


class ObjectDetection(Task):
    """Boxes with a class each, of DETR-like models; experimental.

    The attack climbs the model's own loss of each image, whose matching waits for the device at every step.
    """

    name = "object-detection"
    cross_entropy = "set_loss"
    metrics = tuple(f"{which}_{what}" for what in ("map", "map_50") for which in ("clean", "adversarial", "expected"))
    evaluation = DetectionEvaluation
    least_classes = 1  # each box against none

    def settle(self, args: Any) -> None:
        settle_detection(args)

    @property
    def label_check(self) -> Callable[..., None]:
        return BoxCheck()

    def check_trainer(self, trainer: Any) -> None:
        check_detecting(trainer)

    def check_publishing(self) -> None:
        raise ValueError(f"push_to_hub: {NOT_PUBLISHED}.")

    def count_classes(self, on_pixels: PixelModel, pixels: Tensor, attacked: bool) -> int:
        count_classes(on_pixels, pixels, attacked, least=1)  # it answers with its loss
        return on_pixels.model.config.num_labels

    def check_first(self, model: nn.Module, inputs: Mapping[str, Any]) -> None:
        check_boxes_fit(model, inputs)

    def on_pixels(
        self, model: nn.Module, pixel_space: PixelSpace, labels: Any, model_inputs: dict[str, Any]
    ) -> PixelDetector:
        return PixelDetector(model, pixel_space, labels, model_inputs)

    def attack_labels(self, labels: Any) -> Tensor:
        return labels[0]["class_labels"].new_zeros(len(labels))  # the detector knows them

    def training_logits(self, outputs: Any, labels: Any) -> Tensor:
        raise ValueError("a detection model answers with sets of boxes, not with one set of logits a label.")


TASKS: dict[str, type[Task]] = {task.name: task for task in (ImageClassification, ImageSegmentation, ObjectDetection)}
CLASSIFICATION = ImageClassification()


def _classes_of(*mappings: Mapping[str, str | tuple[str, ...]]) -> frozenset[str]:
    """The classes' names in transformers' tables of a model type's."""
    found = (names if isinstance(names, tuple) else (names,) for each in mappings for names in each.values())
    return frozenset(name for names in found for name in names)


OF_PIXELS = _classes_of(MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES)
OF_BOXES = _classes_of(MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES)
OF_QUERIES = _classes_of(MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES, MODEL_FOR_INSTANCE_SEGMENTATION_MAPPING_NAMES)


def task_of(model: nn.Module) -> Task:
    """The task of a model, as its class says; of one that PEFT, `torch.compile` or DDP wraps, the one inside.

    Raises:
        ValueError: a segmentation model that answers with masks of queries instead of a class a pixel.
    """
    inner = _unwrapped(model)
    names = {kind.__name__ for kind in type(inner).__mro__}
    if names & OF_PIXELS:
        return ImageSegmentation(ignore_index_of(inner))
    if names & OF_BOXES:
        return ObjectDetection()
    if names & OF_QUERIES:
        raise ValueError(
            f"{type(inner).__name__} answers with masks of queries that its loss matches with objects, not with a "
            "class a pixel: there is no cross-entropy a pixel to attack. Use a model of "
            "AutoModelForSemanticSegmentation, e.g. SegFormer, UperNet, BEiT, DPT."
        )
    return CLASSIFICATION


def ignore_index_of(model: nn.Module) -> int:
    """The label that a segmentation model's own loss leaves out, as its config says; 255 where it does not."""
    config = getattr(model, "config", None)
    for name in ("semantic_loss_ignore_index", "loss_ignore_index"):  # the latter is UperNet's
        if (index := getattr(config, name, None)) is not None:
            return index
    return 255


def _unwrapped(model: nn.Module) -> nn.Module:
    if hasattr(model, "get_base_model"):  # PEFT
        return _unwrapped(model.get_base_model())
    for name in ("_orig_mod", "module"):
        if isinstance(inner := getattr(model, name, None), nn.Module):
            return _unwrapped(inner)
    return model
