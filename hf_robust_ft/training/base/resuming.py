"""A checkpoint keeps what it was trained with, and is not continued as another run without being told to."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from hf_robust_ft.attacks.threat_model import format_eps
from hf_robust_ft.provenance.affects import WEIGHTS, arguments
from hf_robust_ft.provenance.record import differences, resolved_recipe
from hf_robust_ft.provenance.validation_curves import STATE
from hf_robust_ft.training.arguments import AdversarialTrainingArguments
from hf_robust_ft.training.base.checkpoints import newest_complete

logger = logging.getLogger(__name__)


class TrainingRecord(TrainerCallback, ExportableState):
    """Keeps in every checkpoint's `trainer_state.json` the settings that its weights depend on.

    Args:
        settings: those of model and data, by name; the arguments' are added when training begins.
    """

    def __init__(self, settings: Mapping[str, Any] | None = None):
        self.settings = dict(settings or {})
        self.training: dict[str, Any] = {}
        self.changes: list[str] = []  # of every forced resumption that led here

    def state(self) -> dict[str, Any]:
        return {
            "args": {"settings": self.settings},
            "attributes": {"training": self.training, "changes": self.changes},
        }

    def on_train_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        self.training = training_settings(args, getattr(train_dataloader, "dataset", None))


def with_record(callbacks: Sequence[TrainerCallback]) -> list[TrainerCallback]:
    """The callbacks with a `TrainingRecord` among them."""
    has_one = any(isinstance(entry, TrainingRecord) for entry in callbacks)
    return [*callbacks, *([] if has_one else [TrainingRecord()])]


def training_settings(args: AdversarialTrainingArguments, train_dataset: Any = None) -> dict[str, Any]:
    """All of the arguments that the weights depend on, as JSON has them, and the number of training images."""
    settings = _comparable(args) | {
        "eps": format_eps(args.threat_model.eps),
        "world_size": args.world_size,
        "mixed_precision": args.mixed_precision,  # also of accelerate launch
        "split_batches": args.accelerator_config.split_batches,
    }
    if hasattr(train_dataset, "__len__"):
        settings["train_samples"] = len(train_dataset)
    return settings


def run_settings(model_args: Any, data_args: Any) -> dict[str, Any]:
    """All of a run's model and data that its weights depend on; folders of this machine by their names."""
    return _comparable(model_args, data_args)


def check_resumed(checkpoint: str | bool, wanted: Mapping[str, Any], args: AdversarialTrainingArguments) -> list[str]:
    """Refuse to go on from a checkpoint that was trained with other settings, unless `args.force_resume`.

    Of the settings that both know; where it does not say what it was trained with, the log does.

    Args:
        checkpoint: its folder, or True for the newest complete one in `args.output_dir`.
        wanted: `training_settings` and, where known, `run_settings`, of the run that is to go on.

    Returns:
        The changes that were forced upon the run so far, this one included.

    Raises:
        ValueError: settings differ; each is named with both values.
    """
    if checkpoint is True:
        checkpoint = newest_complete(args.output_dir, tells=False)
    path = os.path.join(str(checkpoint), STATE)
    if not os.path.isfile(path):  # left to the loading of the checkpoint
        return []
    record = _read_record(path)
    if not record.get("training"):
        logger.warning("%s does not say what it was trained with, so changed settings would go unnoticed.", checkpoint)
        return []
    return refuse_other_settings(checkpoint, record, wanted, args)


def refuse_other_settings(
    place: str, record: Mapping[str, Any], wanted: Mapping[str, Any], args: AdversarialTrainingArguments
) -> list[str]:
    """Raise where what is kept in `place` was trained with other settings than `wanted`, unless `args.force_resume`.

    Args:
        record: what is kept there: `settings` of model and data, those of `training`, and earlier `changes`.

    Returns:
        The changes that were forced so far, this one included.

    Raises:
        ValueError: settings that both know differ; each is named with both values.
    """
    older = {each.name: each.before for each in arguments(type(args)) if each.before != each.default}
    before = older | record["settings"] | record["training"]
    both = [name for name in before if name in wanted]
    changed = differences({name: before[name] for name in both}, {name: wanted[name] for name in both})
    if not changed:
        return record["changes"]
    if not args.force_resume:
        raise ValueError(
            f"{place} was trained with other settings: {changed}. Give the same values again, train anew in "
            "another output_dir, or go on all the same with --force_resume (in Python force_resume=True)."
        )
    logger.warning("%s was trained with other settings and goes on all the same: %s.", place, changed)
    return [*record["changes"], changed]


def _read_record(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            saved = json.load(file)["stateful_callbacks"][TrainingRecord.__name__]
        return saved["args"] | saved["attributes"]
    except (ValueError, LookupError, TypeError):  # of an older version, or half written, as loading it will tell
        return {}


def _comparable(*options: Any) -> dict[str, Any]:
    recipe = resolved_recipe(*options, unset=True, place=lambda path: os.path.basename(os.path.abspath(path)))
    trained = {argument.name for each in options for argument in arguments(type(each)) if WEIGHTS in argument.affects}
    kept = {name: value for name, value in recipe.items() if name in trained}
    return json.loads(json.dumps(kept, default=str))
