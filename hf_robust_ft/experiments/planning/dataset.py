"""How many images and classes a run has, without the network."""

import dataclasses
import os
from typing import Any

from datasets import DatasetDict

from hf_robust_ft.data import SPECS, expected_sizes
from hf_robust_ft.data.segmentation import EMBEDDED_SCENES
from hf_robust_ft.data.splits import SplitSizes
from hf_robust_ft.runs.arguments import DataArguments, ModelArguments
from hf_robust_ft.runs.task_arguments import CLASSIFICATION
from hf_robust_ft.runs.tasks import RunTask

ASSUMED_CLASSES = 1000  # where neither spec nor data tell; the head's share of the FLOPs is small
EMBEDDED = ("digits", EMBEDDED_SCENES)


def planned_dataset(
    task: RunTask, model_args: ModelArguments, data_args: DataArguments, samples: list[int] | None
) -> dict[str, Any]:
    """The entry `dataset` of a `Plan`; call it with the network switched off.

    Args:
        samples: images of train, validation and test, where nothing else is to tell.

    Raises:
        ValueError: data that are neither known, local nor cached.
    """
    name = data_args.dataset
    spec = SPECS.get(name) if task.name == CLASSIFICATION else None  # none of these has masks
    classes = spec.num_classes if spec else None
    if samples is not None:
        sizes, origin = dict(zip(("train", "validation", "test"), samples, strict=True)), "--samples"
    elif spec is not None:
        SplitSizes(data_args.validation_size, data_args.test_size, data_args.split_seed).check_unchanged(spec)
        sizes, origin = expected_sizes(name), "the dataset's spec, for a complete copy"
    else:
        splits = _load_offline(task, data_args)
        sizes = {split: len(splits[split]) for split in ("train", "validation", "test")}
        classes, origin = len(task.class_names(splits)), "the data itself"
    for split, most in (("train", model_args.max_train_samples), ("test", data_args.max_eval_samples)):
        if most is not None:
            sizes[split] = min(sizes[split], most)
    if data_args.streaming:
        for split in ("validation", "test"):
            sizes[split] = min(sizes[split], data_args.stream.eval_samples)
    return {
        "name": shown_name(name),
        "source": f"{spec.hub_id}@{spec.revision}" if spec else shown_name(name),
        "classes": classes or ASSUMED_CLASSES,
        "classes_assumed": classes is None,
        "sizes": sizes,
        "origin": origin,
    }


def _load_offline(task: RunTask, data_args: DataArguments) -> DatasetDict:
    if data_args.streaming:
        raise ValueError(f"{data_args.dataset} as a stream has no length: give --samples TRAIN VALIDATION TEST.")
    try:
        # All images, to save decoding them: those that training would skip are counted.
        return task.load_data(dataclasses.replace(data_args, skip_bad_images=False))
    except (OSError, ValueError) as error:
        if data_args.dataset in (*EMBEDDED, *SPECS) or os.path.exists(data_args.dataset):
            raise
        raise ValueError(
            f"How many images {data_args.dataset} holds is not known without the network, which a dry run does not "
            f"use: it is not cached ({str(error).splitlines()[0]}). Give --samples TRAIN VALIDATION TEST."
        ) from error


def shown_name(name: str) -> str:
    """Folders of this machine by their last part."""
    return os.path.basename(os.path.normpath(name)) if os.path.isabs(name) or os.path.exists(name) else name
