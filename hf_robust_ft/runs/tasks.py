"""What differs between tasks from names to a trainer, in one table; `training.tasks` is its part of training."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import PreTrainedModel

from hf_robust_ft.data import AUGMENTATIONS, align_labels, describe_transforms, with_pixel_values
from hf_robust_ft.data.detection import load_detection_dataset, with_pixel_values_and_boxes
from hf_robust_ft.data.segmentation import (
    JOINT_AUGMENTATION_WORDS,
    drawn_pairs,
    load_segmentation_dataset,
    with_pixel_values_and_masks,
)
from hf_robust_ft.evaluation.batches import stack_boxes, stack_examples, stack_masks
from hf_robust_ft.evaluation.detection.average_precision import check_installed
from hf_robust_ft.models.dense_loading import HEADS
from hf_robust_ft.models.detection import load_detection_model
from hf_robust_ft.models.segmentation import load_segmentation_model
from hf_robust_ft.provenance.choices import check_choice
from hf_robust_ft.provenance.class_names import class_names
from hf_robust_ft.runs.arguments import DataArguments, ModelArguments, at_most
from hf_robust_ft.runs.task_arguments import CLASSIFICATION, DETECTION, SEGMENTATION
from hf_robust_ft.training.arguments import AdversarialTrainingArguments
from hf_robust_ft.training.detection_checks import settle_detection
from hf_robust_ft.training.segmentation_checks import settle_segmentation


@dataclass(frozen=True)
class RunTask:
    """The data and models of a task, which here is image classification.

    Attributes:
        name: the Hub's `pipeline_tag`.
        collate: makes a batch of examples.
    """

    name: str = CLASSIFICATION
    collate: Callable[[list], dict] = stack_examples

    def check(self, model_args: ModelArguments, data_args: DataArguments) -> None:
        """Raise a ValueError for options that mean nothing here, before anything is loaded."""
        check_choice("augmentation", model_args.augmentation, AUGMENTATIONS)

    def settle(self, args: AdversarialTrainingArguments) -> None:
        """Raise a ValueError for training arguments that mean nothing here; enters what follows from the task."""

    def load_data(self, data_args: DataArguments, **options: Any) -> DatasetDict:
        """The splits, with `facts` for the report."""
        return data_args.load(**options)

    def class_names(self, splits: DatasetDict) -> list[str]:
        """The classes of the data by index."""
        return next(iter(splits.values())).features["label"].names

    def load_model(self, model_args: ModelArguments, names: list[str], seed: int) -> tuple[PreTrainedModel, Any]:
        """The model for these classes and its image processor."""
        return model_args.load(names, seed)

    def fitted(self, splits: DatasetDict, config: Any, processor: Any) -> tuple[DatasetDict, Any]:
        """The splits with the classes in the model's order, and what `inputs` then needs to know."""
        return DatasetDict({name: align_labels(split, config) for name, split in splits.items()}), None

    def at_most(self, dataset: Dataset, count: int | None, seed: int, name: str) -> Dataset:
        """`count` images, drawn with `seed`, or all for None."""
        return at_most(dataset, count, seed, name)

    def inputs(self, dataset: Dataset, processor: Any, known: Any, augmentation: str, sample_ids: bool) -> Dataset:
        """The dataset as the model takes it."""
        return with_pixel_values(dataset, processor, augmentation, sample_ids=sample_ids)

    def describe(self, processor: Any, augmentation: str | None = "none") -> dict[str, Any]:
        """The transforms in words."""
        return describe_transforms(processor, augmentation)


@dataclass(frozen=True)
class RunOfScenes(RunTask):
    """What tasks share that label the inside of an image.

    Attributes:
        loader: of the task's models.
    """

    loader: Callable[..., tuple[PreTrainedModel, Any]] = load_segmentation_model

    def class_names(self, splits: DatasetDict) -> list[str]:
        return splits.class_names

    def load_model(self, model_args: ModelArguments, names: list[str], seed: int) -> tuple[PreTrainedModel, Any]:
        given = {"image_size": model_args.image_size, "seed": seed, "head": model_args.head}
        return self.loader(model_args.model, label_names=names, **given, **model_args.loading_options())

    def at_most(self, dataset: Dataset, count: int | None, seed: int, name: str) -> Dataset:
        return dataset if count is None else drawn_pairs(dataset, count, seed)


@dataclass(frozen=True)
class SegmentationRun(RunOfScenes):
    """Semantic segmentation."""

    name: str = SEGMENTATION
    collate: Callable[[list], dict] = stack_masks

    def check(self, model_args: ModelArguments, data_args: DataArguments) -> None:
        check_choice("augmentation", model_args.augmentation, JOINT_AUGMENTATION_WORDS)
        refuse(data_args, ("streaming",))
        refuse(model_args, ("architecture", "prompts"))
        check_choice("head", model_args.head, HEADS)

    def settle(self, args: AdversarialTrainingArguments) -> None:
        settle_segmentation(args)

    def load_data(self, data_args: DataArguments, reduce_labels: bool = False, **options: Any) -> DatasetDict:
        masks = data_args.of_masks(reduce_labels)
        return load_segmentation_dataset(data_args.dataset, **masks, **data_args.loading_options(), **options)

    def fitted(self, splits: DatasetDict, config: Any, processor: Any) -> tuple[DatasetDict, Any]:
        if hasattr(processor, "do_reduce_labels"):  # it is saved with the model
            processor.do_reduce_labels = splits.reduce_labels
        return DatasetDict(splits), splits.reader(config)

    def inputs(self, dataset: Dataset, processor: Any, known: Any, augmentation: str, sample_ids: bool) -> Dataset:
        return with_pixel_values_and_masks(dataset, processor, known, augmentation, sample_ids)

    def describe(self, processor: Any, augmentation: str | None = "none") -> dict[str, Any]:
        return describe_transforms(processor, augmentation, JOINT_AUGMENTATION_WORDS)


@dataclass(frozen=True)
class DetectionRun(RunOfScenes):
    """Object detection; experimental."""

    name: str = DETECTION
    collate: Callable[[list], dict] = stack_boxes
    loader: Callable[..., tuple[PreTrainedModel, Any]] = load_detection_model

    def check(self, model_args: ModelArguments, data_args: DataArguments) -> None:
        if model_args.augmentation != "none":
            raise ValueError(
                f"augmentation={model_args.augmentation!r}: boxes do not follow their images through augmentations "
                f"here yet, so {DETECTION} takes augmentation none."
            )
        check_installed()
        refuse(data_args, ("streaming", "skip_bad_images"), DETECTION)
        refuse(model_args, ("architecture", "prompts"), DETECTION)
        check_choice("head", model_args.head, HEADS)

    def settle(self, args: AdversarialTrainingArguments) -> None:
        settle_detection(args)

    def load_data(self, data_args: DataArguments, **options: Any) -> DatasetDict:
        given = {name: value for name, value in data_args.loading_options().items() if name != "skip_bad_images"}
        return load_detection_dataset(data_args.dataset, **given, **options)

    def fitted(self, splits: DatasetDict, config: Any, processor: Any) -> tuple[DatasetDict, Any]:
        names, known = splits.class_names, class_names(config)
        if sorted(names) != sorted(known):
            raise ValueError(
                f"The checkpoint finds {len(known)} classes ({', '.join(known[:3])}, ...), the dataset has "
                f"{len(names)} ({', '.join(names[:3])}, ...): evaluate one that was fine-tuned on this dataset."
            )
        return DatasetDict(splits), None if names == known else tuple(known.index(name) for name in names)

    def inputs(self, dataset: Dataset, processor: Any, known: Any, augmentation: str, sample_ids: bool) -> Dataset:
        return with_pixel_values_and_boxes(dataset, processor, known)

    def describe(self, processor: Any, augmentation: str | None = "none") -> dict[str, Any]:
        return describe_transforms(processor, augmentation and "none")


TASKS: dict[str, RunTask] = {task.name: task for task in (RunTask(), SegmentationRun(), DetectionRun())}


def refuse(options: Any, names: tuple[str, ...], task: str = SEGMENTATION) -> None:
    """Raise a ValueError for the first of these options that is given: it means nothing for the task."""
    for name in names:
        if getattr(options, name):
            raise ValueError(f"--{name} is for {CLASSIFICATION}, and means nothing for {task}: leave it out.")
