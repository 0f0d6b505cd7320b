"""A recipe's values become the defaults of the command line, so that flags override them and types are argparse's."""

import argparse
import dataclasses
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from hf_robust_ft.provenance.affects import launching
from hf_robust_ft.provenance.choices import alike, did_you_mean
from hf_robust_ft.provenance.source_names import nearest_places
from hf_robust_ft.provenance.yaml_values import load_yaml
from hf_robust_ft.runs.arguments import DataArguments, ModelArguments
from hf_robust_ft.runs.command_parser import CommandParser
from hf_robust_ft.training.arguments import AdversarialTrainingArguments

FOLDER = Path(__file__).parent.parent / "recipes"

# What a run from names is told.
RUN_ARGUMENTS = (ModelArguments, DataArguments, AdversarialTrainingArguments)

# What every run from names needs; a recipe may still say otherwise.
RUN_DEFAULTS = {
    "remove_unused_columns": False,  # pixel_values are made lazily, from the columns Trainer would remove
    "memory_format": "auto",
    "eval_strategy": "epoch",
    "logging_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
}


def read_recipe(recipe: str | Path, types: Sequence[type] = ()) -> dict[str, Any]:
    """The content of a YAML file, or of a shipped recipe given by its name.

    Args:
        types: dataclasses that it may be for. Of one that extends a run's own, what only launches is refused, too.

    Raises:
        ValueError: no such recipe, not a YAML mapping, or one that asks for what only a command line may.
    """
    # By the names themselves: "../x" is no recipe of ours.
    path = FOLDER / f"{recipe}.yaml" if str(recipe) in shipped_recipes() and not _is_file(recipe) else Path(recipe)
    if not _is_file(path):
        files = filter(_is_file, nearest_places(str(recipe)))
        near = [*files, *alike(str(recipe), shipped_recipes())]
        raise ValueError(
            f"There is no recipe {str(recipe)!r}, nor a file of that name.{did_you_mean(near)} Give a YAML file, or "
            f"one of {', '.join(shipped_recipes())}."
        )
    try:
        content = load_yaml(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path.name} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(
            f"{path.name} must map argument names to values, e.g. 'eps: 4/255'; it holds "
            f"{'nothing' if content is None else f'a {type(content).__name__}'}."
        )
    of_runs = [kind for kind in types if issubclass(kind, RUN_ARGUMENTS)]
    ours = dict.fromkeys(each.name for each in launching(*RUN_ARGUMENTS, *of_runs) if not each.is_trainers)
    if asked := [name for name in ours if name in content]:  # nobody trusts code because a recipe says so
        raise ValueError(f"{path.name} may not set {', '.join(asked)}: give it on the command line, for one launch.")
    return content


def _is_file(path: str | Path) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # a name too long, or with NUL
        return False


def compose_recipes(recipes: Sequence[str | Path], types: Sequence[type] = ()) -> dict[str, Any]:
    """Several recipes as one; where they say different things, the later one counts.

    Args:
        types: as of `read_recipe`.

    Raises:
        ValueError: as `read_recipe`.
    """
    composed: dict[str, Any] = {}
    for recipe in recipes:
        composed |= read_recipe(recipe, types)
    return composed


def shipped_recipes() -> list[str]:
    """The names of the recipes in this package."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


class RecipeParser(CommandParser, HfArgumentParser):
    """`HfArgumentParser` that raises a ValueError for what cannot be parsed."""

    def parse_args_into_dataclasses(self, *args: Any, **kwargs: Any) -> tuple:
        try:
            return super().parse_args_into_dataclasses(*args, **kwargs)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{error.doc!r} is no JSON ({error.msg}), as options with several values take it: "
                """'{"num_cycles": 0.5}'."""
            ) from None


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Each option once (not again with hyphens), its value in a word, switches by name alone; no empty defaults."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if _is_switch(action) or _switches_off(action):
            return action.option_strings[0]
        if action.option_strings and action.nargs != 0:
            return f"{action.option_strings[0]} {self._format_args(action, action.dest.rsplit('_', 1)[-1].upper())}"
        return super()._format_action_invocation(action)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_off = (_is_switch(action) and str(action.default) == "False") or _switches_off(action)
        if action.default in (None, []) or is_off:
            return action.help
        if isinstance(action.default, list):
            return f"{action.help} (default: {' '.join(map(str, action.default))})"
        return super()._get_help_string(action)


def _switches_off(action: argparse.Action) -> bool:
    return action.nargs == 0 and action.const is False


def _is_switch(action: argparse.Action) -> bool:
    return action.nargs == "?" and action.const is True


def build_parser(types: Sequence[type], recipe: Mapping[str, Any], **parser_options: Any) -> HfArgumentParser:
    """A parser for dataclasses whose defaults are the recipe's.

    Raises:
        ValueError: a recipe key that is no argument (the nearest ones are named), or a value of the wrong kind; also
            by the parser's methods, for values that cannot be parsed.
    """
    valid = {entry.name for each in types for entry in dataclasses.fields(each) if entry.init}
    for key in recipe:
        if key not in valid:
            near = alike(str(key), valid, 3)
            raise ValueError(f"Unknown recipe key {key!r}.{did_you_mean(near)}")
    parser = RecipeParser(types, allow_abbrev=False, formatter_class=HelpFormatter, **parser_options)
    parser.set_defaults(**{key: value for key, value in RUN_DEFAULTS.items() if key in valid})
    # Of the annotations: HfArgumentParser takes None out of the fields' own types.
    hints = {name: hint for each in types for name, hint in typing.get_type_hints(each).items()}
    may_be_none = {name for name, hint in hints.items() if type(None) in typing.get_args(hint)}
    for action in parser._actions:
        if _switches_off(action):
            action.help = f"Switch --{action.dest} off."
        if action.type in (int, float) and action.dest in may_be_none:
            action.type = _number_or_none(action.type)
        elif action.type is string_to_bool and action.nargs is None:  # `bool | None`: --tf32 as --bf16
            action.nargs, action.const = "?", True
        if action.dest in recipe:
            action.required = False
    takes_list = {action.dest: action for action in parser._actions if action.nargs == "+"}
    takes_mapping = takes_list.keys() | {name for name, hint in hints.items() if _admits_dict(hint)}
    for key, value in recipe.items():
        _check_kind(key, value, key in may_be_none, key in takes_list, key in takes_mapping)
    parser.set_defaults(**{key: _as_argument(value, key in takes_list) for key, value in recipe.items()})
    for name in takes_list.keys() & recipe.keys():
        _type_items(takes_list[name])
    return parser


def parse_recipe(types: Sequence[type], recipe: str | Path, overrides: Mapping[str, Any]) -> tuple:
    """The dataclasses a recipe describes, with `overrides` in place of its values."""
    parser = build_parser(types, {**read_recipe(recipe), **overrides})
    return parser.parse_args_into_dataclasses([], look_for_args_file=False)


def as_flags(options: Mapping[str, Any]) -> list[str]:
    """Recipe values as they would stand on the command line.

    >>> as_flags({"eps": "4/255", "bf16": True, "schedule_args": {"bend": 0.3}, "weight_decay": None})
    ['--eps', '4/255', '--bf16', 'True', '--schedule_args', 'bend=0.3', '--weight_decay', 'none']
    """
    flags = []
    for name, value in options.items():
        words = _as_argument("none" if value is None else value, takes_list=isinstance(value, (list, dict)))
        flags += [f"--{name}", *(words if isinstance(words, list) else [words])]
    return flags


def _admits_dict(hint: Any) -> bool:
    return any((typing.get_origin(each) or each) is dict for each in (hint, *typing.get_args(hint)))


def _check_kind(key: str, value: Any, may_be_none: bool, takes_list: bool, takes_mapping: bool) -> None:
    """Raise where a YAML value is none, a list or a mapping, and the option takes none: argparse would not look."""
    if value is None and not may_be_none:
        raise ValueError(f"Recipe key {key!r} has no value: give one, or leave the line out.")
    if isinstance(value, list) and not takes_list:
        raise ValueError(f"Recipe key {key!r} takes one value, got the list {value!r}.")
    if isinstance(value, dict) and not takes_mapping:
        raise ValueError(f"Recipe key {key!r} takes no mapping, got {value!r}.")


def _number_or_none(number: type) -> Callable[[str], Any]:
    """The type of a number that may be unset: a flag can then undo a recipe."""

    def parse(text: str):
        return None if text.lower() == "none" else number(text)

    parse.__name__ = number.__name__  # for argparse's messages
    return parse


def _type_items(action: argparse.Action) -> None:
    """Give the words of a list their type: argparse does so for a default that is one word only."""
    if not isinstance(action.default, list):
        return
    try:
        action.default = [(action.type or str)(word) for word in action.default]
    except ValueError:
        raise ValueError(f"--{action.dest}: invalid {action.type.__name__} value in {action.default!r}") from None


def _as_argument(value: Any, takes_list: bool) -> Any:
    """A YAML value as it would stand on the command line: argparse gives strings their types, and checks them."""
    if takes_list and isinstance(value, dict):
        return [f"{key}={item}" for key, item in value.items()]
    if takes_list and value is not None:
        return [str(item) for item in (value if isinstance(value, list) else [value])]
    return value if value is None or isinstance(value, dict) else str(value)
