"""The options of the commands: recipes give them values, flags override these."""

import argparse
import dataclasses
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import HfArgumentParser, TrainingArguments

from hf_robust_ft.data.specs import SPECS
from hf_robust_ft.models import BACKBONES
from hf_robust_ft.models.efficientnet_lite import EMBEDDED_MODELS
from hf_robust_ft.provenance.choices import alike, did_you_mean
from hf_robust_ft.provenance.file_names import as_file_name, check_output_dir
from hf_robust_ft.runs.command_parser import CommandParser, wants_all
from hf_robust_ft.runs.option_help import ESSENTIALS, group_options
from hf_robust_ft.runs.recipes import build_parser, compose_recipes, shipped_recipes
from hf_robust_ft.schedules import SCHEDULES

BASE_RECIPE = "paper_default"  # of train and search, unless --config names a whole run's
WHOLE_RECIPES = (BASE_RECIPE, "quickstart", "segmentation")  # the other shipped ones only add to a run's
OWN_RECIPES = dict.fromkeys(EMBEDDED_MODELS, "efficientnet_lite")  # over the base, by --model
RUNS = Path("runs")
SWEEPS = ("diagnose", "calibrate")  # many runs in one folder
PAPER_SCHEDULES = {"fix": "constant", "sched": "hinge", "linear": "linear_warmup"}  # the paper's words


class Options(NamedTuple):
    """What a command was told.

    Args:
        parsed: the dataclasses, in the order of their types.
        recipes: the recipes that were read, by name.
        from_recipes: their values that no flag overrode.
        configs: the recipes as they were named.
    """

    parsed: tuple
    recipes: list[str]
    from_recipes: dict[str, Any]
    configs: list[str] = []


def parse_options(
    command: str,
    argv: Sequence[str],
    types: Sequence[type],
    titles: Sequence[str],
    description: str,
    base_recipe: str | None = None,
    hidden: Collection[str] = (),
) -> Options:
    """Read a command's recipes and flags.

    Args:
        command: its name, for messages.
        argv: what followed it.
        types: dataclasses whose fields are the options.
        titles: what `--help` puts above the options of each.
        description: what the command does.
        base_recipe: read where no `--config` is given, or only shipped ones that add to a run's; over it the
            model's own, if it has one.
        hidden: options that `--help` does not offer, for what the command does anyway or has no use for.

    Raises:
        ValueError: an unknown option, recipe or recipe key, `--schedule` beside `--eps_schedule`, or what the
            dataclasses refuse.
    """
    program = f"hf-robust-ft {command}"
    fields = {entry.name for each in types for entry in dataclasses.fields(each)}
    required = " --model MODEL --dataset DATASET" if fields >= {"model", "dataset"} else ""
    named = {"prog": program, "usage": f"{program}{required} [options]"}
    before = CommandParser(add_help=False, allow_abbrev=False, **named)
    before.add_argument("--config", action="append")
    trains = any(issubclass(each, TrainingArguments) for each in types)
    if trains:
        before.add_argument("--schedule")
    known, arguments = before.parse_known_args(argv)
    if trains and known.schedule is not None:
        arguments = _with_schedule(known.schedule, arguments)
    named_recipes = known.config or []
    recipes = [*_recipes_below(named_recipes, base_recipe, arguments), *named_recipes]
    recipe = compose_recipes(recipes, types)
    parser = build_parser(
        types,
        recipe,
        **named,
        description=f"{description} Values come from recipes, YAML files of the options below; flags override them.",
        epilog=(f"Shipped recipes: {', '.join(shipped_recipes())}. " if trains else "")
        + "A number that a recipe sets is unset by 'none'.",
    )
    _add_for_help(parser, base_recipe, trains, hidden)
    group_options(parser, types, titles, hidden)
    if not wants_all(argv):
        parser.show_only(ESSENTIALS[command])
    options = {name for action in parser._actions for name in action.option_strings}
    misspelt = [word for word in arguments if word.startswith("--") and word.split("=", 1)[0] not in options]
    if misspelt:  # argparse would miss an option that is required first
        raise ValueError(_unknown_option(misspelt, parser))
    seen, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise ValueError(_unknown_option(unknown, parser))
    if trains:
        _check_schedule(seen.eps_schedule)
    settled = _settled_late(command, seen) if trains else []
    parsed = parser.parse_args_into_dataclasses([*arguments, *settled], look_for_args_file=False)
    for each in parsed:
        check_output_dir(getattr(each, "output_dir", None))
    if getattr(seen, "dry_run", False) and seen.tf32:
        for each in parsed:
            if isinstance(each, TrainingArguments):
                each.tf32 = True
    flags = {word.split("=", 1)[0] for word in arguments if word.startswith("--")}
    given = {action.dest for action in parser._actions if flags & set(action.option_strings)}
    names = [Path(name).stem if os.path.isfile(name) else name for name in recipes]
    return Options(parsed, names, {key: value for key, value in recipe.items() if key not in given}, recipes)


def filled_in(options: Options, model: str, dataset: str) -> str:
    """What a user who named little should be told: values that came from recipes and from the tables of names."""
    lines = []
    if options.from_recipes:
        values = ", ".join(f"{key}={value}" for key, value in options.from_recipes.items())
        lines.append(f"From recipe {' + '.join(options.recipes)}: {values}.")
    if model in BACKBONES:
        lines.append(f"Model {model}: {BACKBONES[model].hub_id}.")
    if dataset in SPECS:
        spec = SPECS[dataset]
        lines.append(f"Dataset {dataset}: {spec.hub_id}, revision {spec.revision}, {spec.num_classes} classes.")
    return "\n".join(lines)


def _recipes_below(named: Sequence[str], base: str | None, arguments: Sequence[str]) -> list[str]:
    """What is read before the recipes named: nothing where one of them may be a whole run's, as a file may.

    `--config trades` alone would otherwise train at Trainer's own rate, batch size and epochs.
    """
    additions = set(shipped_recipes()).difference(WHOLE_RECIPES)
    if base is None or any(name not in additions or os.path.isfile(name) for name in named):
        return []
    return [name for name in _base_recipes(base, arguments) if name not in named]


def _base_recipes(base: str, arguments: Sequence[str]) -> list[str]:
    peek = CommandParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--model")
    own = OWN_RECIPES.get(peek.parse_known_args(arguments)[0].model)
    return [base, own] if own else [base]


def _with_schedule(name: str, arguments: Sequence[str]) -> list[str]:
    """`--schedule` is `--eps_schedule` in short."""
    if any(word.split("=", 1)[0] in ("--eps_schedule", "--eps-schedule") for word in arguments):
        raise ValueError("--schedule and --eps_schedule are the same option: give one of them.")
    return [*arguments, "--eps_schedule", name]


def _check_schedule(name: str) -> None:
    if name in SCHEDULES:
        return
    near = [PAPER_SCHEDULES[name]] if name in PAPER_SCHEDULES else alike(name, SCHEDULES)
    raise ValueError(f"Unknown eps schedule {name!r}.{did_you_mean(near)} Valid schedules: {', '.join(SCHEDULES)}.")


def _settled_late(command: str, seen: argparse.Namespace) -> list[str]:
    """Flags that follow from the others."""
    flags = []
    if seen.output_dir is None:
        flags += ["--output_dir", default_sweep_dir(command, seen) if command in SWEEPS else default_output_dir(seen)]
    if getattr(seen, "dry_run", False):
        flags += without_device(seen.tf32)
    return flags


def without_device(tf32: bool | None) -> list[str]:
    """Flags of a run that is only told of: else Trainer's arguments refuse bf16 and TF32 where its device is not."""
    return ["--use_cpu", "true", *(["--tf32", "false"] if tf32 else [])]


def default_output_dir(seen: argparse.Namespace) -> str:
    """runs/MODEL-DATASET-NORM-EPS-SCHEDULE-seedN: another run, another folder.

    >>> names = dict(model="timm/resnet18", dataset="cub200", norm="Linf", eps="4/255", eps_schedule="hinge", seed=0)
    >>> default_output_dir(argparse.Namespace(**names))
    'runs/timm-resnet18-cub200-Linf-4_255-hinge-seed0'
    """
    model, dataset = (_short(name) for name in (seen.model, seen.dataset))
    eps = str(seen.eps).replace("/", "_")
    name = f"{model}-{dataset}-{seen.norm}-{eps}-{seen.eps_schedule}-seed{seen.seed}"
    return str(RUNS / as_file_name(name))


def default_sweep_dir(command: str, seen: argparse.Namespace) -> str:
    """runs/COMMAND-MODEL-DATASET-NORM: its runs share the rest, or are refused.

    >>> default_sweep_dir("diagnose", argparse.Namespace(model="swin", dataset="cub200", norm="Linf"))
    'runs/diagnose-swin-cub200-Linf'
    """
    return str(RUNS / as_file_name(f"{command}-{_short(seen.model)}-{_short(seen.dataset)}-{seen.norm}"))


def _short(name: str) -> str:
    """A model's or dataset's name in a folder's."""
    path = os.path.expanduser(name)
    return Path(path).resolve().name if os.path.exists(path) else name


def _unknown_option(unknown: Sequence[str], parser: HfArgumentParser) -> str:
    names = [name for action in parser._actions for name in action.option_strings if "-" not in name[2:]]
    asked = unknown[0].split("=", 1)[0].replace("-", "_").replace("__", "--", 1)
    asked = {"--lr": "--learning_rate"}.get(asked, asked)  # as other programs call it
    # --epochs is short for --num_train_epochs rather than a misspelt --eps.
    longer = sorted((name for name in names if name.endswith(f"_{asked[2:]}")), key=lambda name: "train" not in name)
    near = [asked] if asked in names else longer[:2] or alike(asked, names, 2)
    return f"Unknown option {unknown[0]}.{did_you_mean(near)}"


def _add_for_help(parser: HfArgumentParser, base_recipe: str | None, trains: bool, hidden: Collection[str]) -> None:
    """Options that were taken out of the arguments before, and belong to no dataclass: for --help alone."""
    without = f" (without any, or under a shipped one that only adds: {base_recipe})" if base_recipe else ""
    parser.add_argument(
        "--config",
        default=argparse.SUPPRESS,
        metavar="RECIPE",
        help=f"A YAML file{', or the name of a shipped recipe' if trains else ''}. May be given several times: later "
        f"ones override earlier ones{without}.",
    )
    if trains and "schedule" not in hidden:
        (named,) = (action for action in parser._actions if action.dest == "eps_schedule")
        parser.add_argument(
            "--schedule",
            default=argparse.SUPPRESS,
            metavar="SCHEDULE",
            help=f"{named.help} Short for --eps_schedule.",
        )
