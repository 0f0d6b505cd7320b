"""Which task a run is of, and the options that only masks have."""

from dataclasses import dataclass, field
from typing import Any

from hf_robust_ft.data.detection import EMBEDDED_BOXES
from hf_robust_ft.data.segmentation import EMBEDDED_SCENES
from hf_robust_ft.data.segmentation.masks import IGNORE_INDEX
from hf_robust_ft.models.detection import detects
from hf_robust_ft.models.segmentation import segments
from hf_robust_ft.provenance.affects import DeclaredArguments
from hf_robust_ft.provenance.choices import check_choice

CLASSIFICATION, SEGMENTATION, DETECTION = "image-classification", "image-segmentation", "object-detection"
ALIASES = {
    "classification": CLASSIFICATION,
    "segmentation": SEGMENTATION,
    "semantic-segmentation": SEGMENTATION,
    "detection": DETECTION,
}
KNOWING = {
    SEGMENTATION: "train, evaluate, reproduce, report, verify, publish and leaderboard know both",
    DETECTION: "train and evaluate know it",
}
EMBEDDED = {EMBEDDED_SCENES: SEGMENTATION, EMBEDDED_BOXES: DETECTION}
OF_MASKS = ("id2label", "ignore_index", "reduce_labels")


@dataclass(kw_only=True)
class TaskArguments(DeclaredArguments):
    """What a model is asked, by the Hub's names of tasks."""

    task: str | None = field(
        default=None,
        metadata={
            "help": "classification, segmentation or (experimental) detection (default: as the checkpoint or "
            "embedded data say).",
            "affects": ("weights", "measurement"),
        },
    )
    id2label: str | None = field(
        default=None,
        metadata={
            "help": "JSON file of the classes of masks by index (default: id2label.json beside the data).",
            "affects": ("weights", "measurement"),
        },
    )
    ignore_index: int | None = field(
        default=None,
        metadata={
            "help": f"Label of pixels in masks that are left out (default: {IGNORE_INDEX}).",
            "affects": ("weights", "measurement"),
        },
    )
    reduce_labels: bool | None = field(
        default=None,
        metadata={
            "help": "Masks count classes from 1, and 0 is left out (default: no; in evaluate as the checkpoint's image "
            "processor says).",
            "affects": ("weights", "measurement"),
        },
    )

    def __post_init__(self):
        if self.task is not None:
            self.task = ALIASES.get(self.task, self.task)
            check_choice("task", self.task, (CLASSIFICATION, SEGMENTATION, DETECTION))

    def settle_task(self, model: str, dataset: str, revision: str | None = None) -> str:
        """The task of a run with this model and dataset; where it is no classification, `task` then says so.

        Raises:
            ValueError: options of masks for another task than segmentation, or embedded data of another task.
        """
        if self.task is None and (dataset == EMBEDDED_SCENES or segments(model, revision)):
            self.task = SEGMENTATION
        if self.task is None and (dataset == EMBEDDED_BOXES or detects(model, revision)):
            self.task = DETECTION
        task = self.task or CLASSIFICATION
        if EMBEDDED.get(dataset, task) != task:
            raise ValueError(
                f"{dataset} is embedded data of {EMBEDDED[dataset]}, and this is {task} ({model}): take another "
                f"--dataset, or a model of {EMBEDDED[dataset]} and --task {EMBEDDED[dataset]}."
            )
        if task == SEGMENTATION:
            return task
        given = [name for name in OF_MASKS if getattr(self, name) is not None]
        if given:
            raise ValueError(
                f"--{given[0]} is about masks, and means nothing for {task}: leave it out, or give --task "
                f"{SEGMENTATION}."
            )
        return task

    def refuse_other_tasks(self, command: str, model: str, dataset: str, *known: str) -> None:
        """Raise a ValueError where a command that knows classification, and the tasks `known`, is asked for another."""
        task, known = self.settle_task(model, dataset), (CLASSIFICATION, *known)
        if task not in known:
            raise ValueError(
                f"{command} is for {' and '.join(known)}, and this is {task} ({model} on {dataset}). {KNOWING[task]}."
            )

    def of_masks(self, reduce_labels: bool = False) -> dict[str, Any]:
        """What `load_segmentation_dataset` is to be told.

        Args:
            reduce_labels: where the option leaves it open.
        """
        return {
            "id2label": self.id2label,
            "ignore_index": IGNORE_INDEX if self.ignore_index is None else self.ignore_index,
            "reduce_labels": reduce_labels if self.reduce_labels is None else self.reduce_labels,
        }
