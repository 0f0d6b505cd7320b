"""What an argument affects is said on its field; what is recorded, compared, refused and shown follows from it.

A field of an argument dataclass says `metadata={"help": ..., "affects": ...}`, one of `AFFECTS` or several:

- "weights": what is trained, or found by a search. Recorded in recipes, compared when a checkpoint is resumed, when
  cells of a grid or runs of a sweep share a folder, and stated in report and card.
- "measurement": the figures. Recorded, compared between cells, refused to a sweep, which measures in its own way.
- "launch": how a run is started, and what a command writes where. None of these; no recipe may set one of a run's
  that is ours.

More keys, where they are needed: `"stated"`, for what a report says of a run, is "always" (at its default, too) or
"never" (told elsewhere); `"of"` names the argument without which this one does nothing; `"before"` is what runs had
that are older than the argument, where it is not its default.
"""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields
from enum import Enum
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple

from transformers import TrainingArguments

WEIGHTS, MEASUREMENT, LAUNCH = AFFECTS = ("weights", "measurement", "launch")
STATED = ("always", "never")
# Keys of a field that argparse has no use for; "sets" is a grid's.
OWN_KEYS = ("affects", "stated", "of", "before", "sets")

# What Trainer's own fields would say; those that are not here affect the launch.
_PROTOCOL = {"affects": WEIGHTS, "stated": "always"}
_WEIGHTS = {"affects": WEIGHTS}
_RHYTHM = {"affects": MEASUREMENT, "stated": "never"}  # when it measures, logs and saves, and in what portions
TRAINERS_OWN: dict[str, Mapping[str, Any]] = {
    "num_train_epochs": _PROTOCOL, "max_steps": _PROTOCOL, "per_device_train_batch_size": _PROTOCOL,
    "gradient_accumulation_steps": _PROTOCOL, "learning_rate": _PROTOCOL, "weight_decay": _PROTOCOL,
    "warmup_steps": _PROTOCOL, "adam_beta1": _PROTOCOL, "adam_beta2": _PROTOCOL, "label_smoothing_factor": _PROTOCOL,
    "seed": _PROTOCOL, "bf16": _PROTOCOL, "fp16": _PROTOCOL, "optim": _PROTOCOL, "lr_scheduler_type": _PROTOCOL,
    "lr_scheduler_kwargs": _WEIGHTS, "adam_epsilon": _WEIGHTS, "max_grad_norm": _WEIGHTS,
    "neftune_noise_alpha": _WEIGHTS, "optim_args": _WEIGHTS, "optim_target_modules": _WEIGHTS, "data_seed": _WEIGHTS,
    "full_determinism": _WEIGHTS, "tf32": _WEIGHTS, "torch_compile": _WEIGHTS, "train_sampling_strategy": _WEIGHTS,
    "load_best_model_at_end": _WEIGHTS, "metric_for_best_model": _WEIGHTS, "greater_is_better": _WEIGHTS,
    "dataloader_drop_last": _WEIGHTS,
    "eval_strategy": {"affects": MEASUREMENT, "stated": "always"},
    "per_device_eval_batch_size": _RHYTHM, "eval_steps": _RHYTHM, "save_strategy": _RHYTHM, "save_steps": _RHYTHM,
    "logging_strategy": _RHYTHM, "logging_steps": _RHYTHM, "remove_unused_columns": _RHYTHM,
}  # fmt: skip


class Argument(NamedTuple):
    """A field, and what it says.

    Attributes:
        affects: of `AFFECTS`; `("weights",)` where a subclass of somebody else says nothing, which hides nothing.
        stated: "always", "never", or "" for unless it is at its default.
        of: the argument without which it does nothing.
        before: its value in runs that are older than it.
        is_ours: whether a class of ours declares it, be it in place of Trainer's own.
        is_trainers: whether `TrainingArguments` has it, be it in other words.
    """

    name: str
    default: Any
    affects: tuple[str, ...]
    stated: str
    of: str | None
    before: Any
    is_ours: bool
    is_trainers: bool

    @property
    def is_launch(self) -> bool:
        return self.affects == (LAUNCH,)

    @property
    def only_measures(self) -> bool:
        return self.affects == (MEASUREMENT,)


class DeclaredArguments:
    """Base of dataclasses whose fields say what they affect.

    Raises:
        ValueError: when a class is defined, for a word that is none of `AFFECTS` or `STATED`; it names the field.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, entry in vars(cls).items():
            if isinstance(entry, Field):
                _check(f"{cls.__name__}.{name}", entry.metadata)
                entry.metadata = MappingProxyType(_Metadata(entry.metadata))


class _Metadata(Mapping):
    """A field's metadata, of which only argparse's keywords are listed: `HfArgumentParser` passes on what it finds."""

    def __init__(self, content: Mapping[str, Any]):
        self._content = dict(content)

    def __getitem__(self, key: str) -> Any:
        return self._content[key]

    def __iter__(self) -> Iterator[str]:
        return (key for key in self._content if key not in OWN_KEYS)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def copy(self) -> dict[str, Any]:
        return dict(self)


@cache
def arguments(of: type) -> tuple[Argument, ...]:
    """The arguments of a dataclass that its constructor takes, in their order."""
    inherited = {entry.name: entry for entry in fields(TrainingArguments)}
    if not issubclass(of, TrainingArguments):
        inherited = {}
    found = []
    for entry in fields(of):
        if not entry.init:
            continue
        is_ours = entry is not inherited.get(entry.name)
        said = entry.metadata if is_ours else TRAINERS_OWN.get(entry.name, {"affects": LAUNCH})
        affects = said.get("affects", WEIGHTS)
        default = entry.default if entry.default_factory is MISSING else entry.default_factory()
        found.append(
            Argument(
                entry.name,
                default,
                affects if isinstance(affects, tuple) else (affects,),
                said.get("stated", ""),
                said.get("of"),
                said.get("before", default),
                is_ours,
                entry.name in inherited,
            )
        )
    return tuple(found)


def launching(*types: type) -> list[Argument]:
    """What of ours only starts a run, Trainer's own that do something else with us (`push_to_hub`) among them."""
    return [each for kind in types for each in arguments(kind) if each.is_launch and each.is_ours]


def unsaid(*types: type) -> dict[str, Any]:
    """What is meant where a record does not say: it is older than the argument, or states what was changed only."""
    return {each.name: each.before for kind in types for each in arguments(kind) if each.before is not MISSING}


def settings(*options: Any) -> dict[str, Any]:
    """What dataclasses of arguments say of weights and measurement, as it stands there."""
    return {
        each.name: getattr(values, each.name)
        for values in options
        for each in arguments(type(values))
        if not each.is_launch
    }


def stated_settings(options: Any, affects: str) -> dict[str, Any]:
    """What a report says of the arguments that affect this, and what is compared between runs beside each other.

    What is always stated, what is not at its default, and what belongs to an argument that is not; no None by default.
    Ours come first; values are as JSON has them.

    Args:
        options: a dataclass of arguments.
        affects: one of `AFFECTS`, which an argument may affect beside others.
    """
    every = {each.name: each for each in sorted(arguments(type(options)), key=lambda each: each.is_trainers)}
    changed = {name for name, each in every.items() if getattr(options, name) != each.default}
    values = {
        name: getattr(options, name)
        for name, each in every.items()
        if affects in each.affects
        and each.stated != "never"
        and (each.stated == "always" or name in changed or each.of in changed)
    }
    return {
        name: value.value if isinstance(value, Enum) else value
        for name, value in values.items()
        if value is not None or name in changed
    }


def _check(name: str, metadata: Mapping[str, Any]) -> None:
    affects = metadata.get("affects", ())
    for word in affects if isinstance(affects, tuple) else (affects,):
        if word not in AFFECTS:
            raise ValueError(f"{name} affects {word!r}, which is nothing known. Valid: {', '.join(AFFECTS)}.")
    if metadata.get("stated", STATED[0]) not in STATED:
        raise ValueError(f"{name} is stated {metadata['stated']!r}. Valid: {', '.join(STATED)}, or leave it out.")
