"""Do a checkpoint and a dataset mean the same class by the same index?"""

import logging
from typing import Any

from datasets import ClassLabel, Dataset

from hf_robust_ft.provenance.class_names import class_names

logger = logging.getLogger(__name__)


def align_labels(dataset: Dataset, config: Any) -> Dataset:
    """The dataset with its labels in the order of the checkpoint's classes, where both name the same classes.

    Raises:
        ValueError: different numbers of classes.
    """
    names, known = dataset.features["label"].names, class_names(config)
    if len(names) != len(known):
        raise ValueError(
            f"The checkpoint tells {len(known)} classes apart, the dataset has {len(names)}: evaluate a "
            "checkpoint that was fine-tuned on this dataset (hf-robust-ft train)."
        )
    if known == names:
        return dataset
    if sorted(known) == sorted(names) and len(set(known)) == len(known):
        # Not `align_labels_with_mapping`, which takes names that differ only in case for one class.
        target = [known.index(name) for name in names]
        features = dataset.features.copy()
        features["label"] = ClassLabel(names=known)
        return dataset.map(lambda label: {"label": target[label]}, input_columns="label", features=features)
    logger.warning(
        "The checkpoint names its classes %s..., the dataset %s...: they are taken to be in the same order.",
        known[:3], names[:3],
    )  # fmt: skip
    return dataset
