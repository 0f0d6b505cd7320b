"""YAML as recipes are written: plain values, each key once, and `no` is a word."""

import re
from collections.abc import Hashable
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Builds plain Python values only, whatever tags a file holds."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            # A few lines of them can stand for more text than fits into memory.
            event = self.peek_event()
            raise yaml.MarkedYAMLError(problem=f"*{event.anchor}: write values out", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.MarkedYAMLError(problem=f"{key!r} is given twice", problem_mark=key_node.start_mark)
            seen.add(key if isinstance(key, Hashable) else None)
        return super().construct_mapping(node, deep)


# As in YAML 1.2: `save_strategy: no` is the word, not False.
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("true|True|TRUE|false|False|FALSE"), list("tTfF"))


def load_yaml(source: str | bytes) -> Any:
    """The value of a YAML document in UTF-8.

    As `yaml.safe_load`, but only `true` and `false` are truth values, a key that is given twice is an error instead of
    its last value, and aliases are refused.

    Raises:
        ValueError: not one YAML document, with the line; in one line of text.

    >>> load_yaml("save_strategy: no\\nbf16: true\\neps: 4/255")
    {'save_strategy': 'no', 'bf16': True, 'eps': '4/255'}
    """
    try:
        return yaml.load(source, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        continued = error.problem is None or error.problem.startswith("but ")  # "expected ..., but found ..."
        said = (error.context, error.problem) if continued else (error.problem,)
        raise ValueError(where + ", ".join(part for part in said if part)) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (yaml.YAMLError, ValueError, OverflowError, ArithmeticError, LookupError, TypeError) as error:
        raise ValueError(" ".join(str(error).split())) from None
