"""A run's model and data by name: what to load, and what a report says of it."""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset
from transformers import PreTrainedModel

from hf_robust_ft.data import SPECS, Streaming, load_image_dataset, stratified_sample
from hf_robust_ft.data.detection import EMBEDDED_BOXES
from hf_robust_ft.data.segmentation import EMBEDDED_SCENES, JOINT_AUGMENTATION_WORDS
from hf_robust_ft.models import BACKBONES, load_image_classifier
from hf_robust_ft.models.efficientnet_lite import EMBEDDED_MODELS
from hf_robust_ft.models.heads import HEADS
from hf_robust_ft.models.image_size import check_image_size
from hf_robust_ft.provenance.choices import check_choice
from hf_robust_ft.provenance.record import portable_place
from hf_robust_ft.reporting.commands import DEFAULT_SPLITTING
from hf_robust_ft.runs.checkpoint_arguments import CheckpointArguments
from hf_robust_ft.runs.model_names import check_model_name
from hf_robust_ft.runs.task_arguments import TaskArguments

EMBEDDED = ("digits", EMBEDDED_SCENES, EMBEDDED_BOXES)


@dataclass
class DataArguments(TaskArguments):
    """Which images."""

    dataset: str = field(
        metadata={
            "help": f"A dataset of the paper ({', '.join(SPECS)}), any Hub dataset id, a folder of images or "
            f"parquet file, or embedded: {', '.join(EMBEDDED)}.",
            "affects": ("weights", "measurement"),
        }
    )
    image_column: str | None = field(
        default=None, metadata={"help": "Image column, where there are several.", "affects": ("weights", "measurement")}
    )
    label_column: str | None = field(
        default=None,
        metadata={
            "help": "Label (mask, objects) column, where it is not found by itself.",
            "affects": ("weights", "measurement"),
        },
    )
    dataset_config: str | None = field(
        default=None,
        metadata={"help": "Configuration, where the dataset has several.", "affects": ("weights", "measurement")},
    )
    dataset_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the dataset.", "affects": ("weights", "measurement")}
    )
    validation_size: float = field(
        default=0.1,
        metadata={
            "help": "Share of train split off where there is no validation split.",
            "affects": ("weights", "measurement"),
        },
    )
    test_size: float = field(
        default=0.2,
        metadata={
            "help": "Share of train split off where there is no test split.",
            "affects": ("weights", "measurement"),
        },
    )
    split_seed: int = field(
        default=0, metadata={"help": "Seed of what is split off.", "affects": ("weights", "measurement")}
    )
    max_eval_samples: int | None = field(
        default=None,
        metadata={"help": "Evaluate on at most this many images (by split_seed).", "affects": "measurement"},
    )
    skip_bad_images: bool = field(
        default=False,
        metadata={
            "help": "Leave out images that cannot be decoded, and report them; decodes all once.",
            "affects": ("weights", "measurement"),
        },
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "Download while training and keep nothing on disk; needs max_steps.", "affects": "weights"},
    )
    shuffle_buffer: int | None = field(
        default=None,
        metadata={
            "help": "Images of a stream from which the next is drawn (default: 1000).",
            "affects": "weights",
            "of": "streaming",
        },
    )
    stream_eval_samples: int | None = field(
        default=None,
        metadata={
            "help": "Images kept of each evaluation split of a stream (default: 1000).",
            "affects": "measurement",
            "of": "streaming",
        },
    )

    def __post_init__(self):
        super().__post_init__()
        self.dataset = os.path.expanduser(self.dataset)
        for name in ("shuffle_buffer", "stream_eval_samples"):
            if getattr(self, name) is not None and not self.streaming:
                raise ValueError(f"{name} does nothing without --streaming.")
        _check_count("max_eval_samples", self.max_eval_samples)

    @property
    def stream(self) -> Streaming | bool:
        """How the dataset is streamed; False where it is not."""
        given = {"shuffle_buffer": self.shuffle_buffer, "eval_samples": self.stream_eval_samples}
        return self.streaming and Streaming(**{name: count for name, count in given.items() if count is not None})

    @property
    def local_paths(self) -> dict[str, str]:
        """Which of the arguments are files or folders of this machine, with their paths."""
        ours = self.dataset in SPECS or self.dataset in EMBEDDED
        return {} if ours or not os.path.exists(self.dataset) else {"dataset": self.dataset}

    def load(self, require_train: bool = True) -> DatasetDict:
        """The splits train, validation and test, with columns `image` and `label`, and `facts` for the report."""
        return load_image_dataset(
            self.dataset, require_train=require_train, streaming=self.stream, **self.loading_options()
        )

    def loading_options(self) -> dict[str, Any]:
        """What datasets of every task are loaded with."""
        options = {"name": self.dataset_config, "revision": self.dataset_revision}
        return {
            "image_column": self.image_column,
            "label_column": self.label_column,
            "validation_size": self.validation_size,
            "test_size": self.test_size,
            "seed": self.split_seed,
            "skip_bad_images": self.skip_bad_images,
            **{name: value for name, value in options.items() if value},
        }

    def describe(self, splits: DatasetDict | None = None) -> dict[str, Any]:
        """What a report says of the data; a local folder is named without its path.

        Args:
            splits: as loaded, for what only loading tells: commit, sizes, images left out.
        """
        loaded = dict(getattr(splits, "facts", {}))
        spec = SPECS.get(self.dataset)
        splitting = {name: getattr(self, name) for name in DEFAULT_SPLITTING}
        if spec is not None:  # its splits follow from the spec
            splitting |= {"validation_size": None, "test_size": None}
        facts = {"splitting": splitting, "skipped_images": _without_folders(loaded.pop("skipped_images", {}))}
        if self.local_paths:
            facts["dataset"] = Path(self.dataset).resolve().name
            facts["dataset_path"] = portable_place(self.dataset)
        else:
            facts |= {
                "dataset": spec.hub_id if spec else self.dataset,
                "dataset_on_hub": self.dataset not in EMBEDDED,
                "dataset_config": self.dataset_config,
                "dataset_revision": self.dataset_revision or (spec.revision if spec else None),
            }
        if spec is not None:
            facts["dataset_alias"] = self.dataset
        if self.streaming:
            facts["streaming"] = dataclasses.asdict(self.stream)
        return {name: value for name, value in (loaded | facts).items() if value is not None and value != {}}


@dataclass
class ModelArguments(CheckpointArguments):
    """Which pretrained model, and how its training images are varied."""

    model: str = field(
        metadata={
            "help": f"A backbone of the paper ({', '.join(BACKBONES)}), the Hub id of any image model of "
            "transformers (timm/... included), open_clip:NAME, a folder or weight file, or "
            f"embedded: {', '.join(EMBEDDED_MODELS)}.",
            "affects": ("weights", "measurement"),
        }
    )
    head: str = field(
        default="auto",
        metadata={
            "help": "The head: auto (new in place of a pretraining one), new, keep, or zero_shot (from the class "
            "names, by CLIP's text tower).",
            "affects": "weights",
        },
    )
    prompts: list[str] | None = field(
        default=None,
        metadata={
            "help": "Templates of zero_shot, {} for the class (default: 'a photo of a {}.').",
            "affects": "weights",
        },
    )
    augmentation: str = field(
        default="paper",
        metadata={
            "help": "Training augmentation: paper (flip, colour jitter 0.25, rotation), none, or of masks too crop "
            "(flip, random crop).",
            "affects": "weights",
        },
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on this many images at most.", "affects": "weights"}
    )

    def __post_init__(self):
        """Refuse what loading would, before a dataset is downloaded for it."""
        check_model_name(self.model, self.model_revision)
        for name, valid in (("head", HEADS), ("augmentation", JOINT_AUGMENTATION_WORDS)):
            check_choice(name, getattr(self, name), valid)
        _check_count("max_train_samples", self.max_train_samples)
        check_image_size(self.image_size)

    @property
    def local_paths(self) -> dict[str, str]:
        """Which of the arguments are files or folders of this machine, with their paths."""
        ours = (*BACKBONES, *EMBEDDED_MODELS)
        named = {"model": self.model, "architecture": self.architecture or ""}
        paths = {name: os.path.expanduser(path) for name, path in named.items() if path not in ours}
        return {name: path for name, path in paths.items() if os.path.exists(path)}

    def load(self, label_names: Sequence[str], seed: int) -> tuple[PreTrainedModel, Any]:
        """The classifier for these classes and its image processor."""
        return load_image_classifier(
            self.model,
            label_names=label_names,
            image_size=self.image_size,
            seed=seed,
            head=self.head,
            architecture=self.architecture,
            **({"prompts": self.prompts} if self.prompts else {}),
            **self.loading_options(),
        )


def at_most(dataset: Dataset | IterableDataset, count: int | None, seed: int, name: str) -> Dataset | IterableDataset:
    """`count` images, each class by its share and drawn with `seed` (of a stream, the first), or all for None."""
    _check_count(name, count)
    if count is None:
        return dataset
    if isinstance(dataset, IterableDataset):
        return dataset.take(count)
    return stratified_sample(dataset, min(count, len(dataset)), seed)


def _check_count(name: str, count: int | None) -> None:
    if count is not None and count < 1:
        raise ValueError(f"{name} must be at least 1, got {count}.")


def _without_folders(skipped: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """Images that were left out, by split; files of this machine by their names."""
    return {
        split: [entry | {"file": os.path.basename(entry["file"] or ""), "reason": _bare(entry)} for entry in entries]
        for split, entries in skipped.items()
        if entries
    }


def _bare(entry: dict) -> str:
    return entry["reason"].replace(entry["file"] or "", os.path.basename(entry["file"] or ""))
