"""YAML as recipes are written: plain values, each key once, and `no` is a word."""

import re
from collections.abc import Mapping
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent


class _Dumper(yaml.SafeDumper):
    """Writes what both YAML 1.1 and 1.2 read as it was: 1.1 has more words for truth values, 1.2 more for numbers."""


_Dumper.add_implicit_resolver("number", re.compile(r"[-+0-9._eEo]+$"), list("-+.0123456789"))


def dump_yaml(values: Mapping[str, Any]) -> str:
    """A line for each plain value, in their order.

    >>> dump_yaml({"save_strategy": "no", "eps": "1e-2"})
    "save_strategy: 'no'\\neps: '1e-2'\\n"
    """
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=float("inf"))


def load_yaml(source: str | bytes) -> Any:
    """The value of a YAML 1.2 document in UTF-8, of plain Python types whatever tags it holds.

    A key that is given twice is an error, and aliases are refused.

    Raises:
        ValueError: not one YAML document, with the line; in one line of text.

    >>> load_yaml("save_strategy: no\\nbf16: true\\neps: 4/255\\nlearning_rate: 1e-4")
    {'save_strategy': 'no', 'bf16': True, 'eps': '4/255', 'learning_rate': 0.0001}
    """
    try:
        for event in YAML(typ="safe", pure=True).parse(source):
            if isinstance(event, AliasEvent):  # a few lines of them can stand for more text than fits into memory
                raise MarkedYAMLError(problem=f"*{event.anchor}: write values out", problem_mark=event.start_mark)
        return YAML(typ="safe", pure=True).load(source)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        continued = error.problem is None or error.problem.startswith("but ")  # "expected ..., but found ..."
        said = (error.context, error.problem) if continued else (error.problem,)
        raise ValueError(where + ", ".join(part for part in said if part)) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (YAMLError, ValueError, OverflowError, ArithmeticError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(" ".join(str(error).split())) from None
