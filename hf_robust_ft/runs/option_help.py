"""What `--help` shows of a command: the options most people need, in groups; `--help-all` shows every one."""

import argparse
import dataclasses
from collections.abc import Collection, Sequence

from transformers import TrainingArguments

from hf_robust_ft.training.tuning import TuningArguments

TUNING_TITLE = "fine-tuning"
TRAINER_TITLE = "training (transformers.Trainer)"

_RUN = ("config", "model", "dataset", "eps", "learning_rate", "num_train_epochs", "per_device_train_batch_size")
_SWEEP = ("config", "runs", "model", "dataset", "epsilons", "seeds", "num_train_epochs", "learning_rate", "threshold")
ESSENTIALS = {
    "train": (
        *_RUN, "task", "image_size", "schedule", "objective", "bf16", "seed", "eval_protocol", "output_dir",
        "resume_from_checkpoint", "push_to_hub", "dry_run",
    ),
    "search": (*_RUN, "trials", "minutes", "learning_rates", "weight_decays", "bf16", "recipe"),
    "diagnose": (*_SWEEP, "output_dir", "bf16"),
    "calibrate": (*_SWEEP, "output_dir", "bf16", "recipe"),
    "evaluate": (
        "config", "model", "dataset", "task", "split", "norm", "eps", "epsilons", "protocol", "attack_steps",
        "autoattack", "max_eval_samples", "batch_size", "device", "store_examples", "save_examples", "output_dir",
    ),
    "reproduce": (
        "grid", "models", "datasets", "epsilons", "settings", "seeds", "only", "runner", "launcher", "output_dir",
        "dry_run",
    ),
}  # fmt: skip


def group_options(
    parser: argparse.ArgumentParser, types: Sequence[type], titles: Sequence[str], hidden: Collection[str]
) -> None:
    """Put options under the title of their dataclass, what it inherits of fine-tuning and of Trainer under its own.

    Args:
        hidden: options that are not offered.
    """
    home, order = {}, []
    for each, title in zip(types, titles, strict=True):
        order.append(title)
        home |= {entry.name: title for entry in dataclasses.fields(each)}
        for base, own_title in ((TuningArguments, TUNING_TITLE), (TrainingArguments, TRAINER_TITLE)):
            if issubclass(each, base):
                order.append(own_title)
                home |= {entry.name: own_title for entry in dataclasses.fields(base)}
    groups = {title: parser.add_argument_group(title) for title in order}
    options = parser._action_groups[1]
    for action in list(options._group_actions):
        if action.dest in home:
            options._group_actions.remove(action)
            groups[home[action.dest]]._group_actions.append(action)
        if action.dest in hidden:
            action.help = argparse.SUPPRESS
