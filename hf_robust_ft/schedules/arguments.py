"""A schedule's own arguments, as they are given: a mapping, or words key=value on a command line."""

from collections.abc import Mapping, Sequence
from typing import Any


def parse_schedule_args(given: Mapping[str, Any] | Sequence[str] | None) -> dict[str, Any]:
    """The arguments by name; numbers are read as such. None, and the word "none" alone, mean no arguments.

    Raises:
        ValueError: words that are not key=value, or a key given twice.

    >>> parse_schedule_args(["patience=3", "tolerance=0.01", "points=0:0,1:1"])
    {'patience': 3, 'tolerance': 0.01, 'points': '0:0,1:1'}
    """
    if given is None or (not isinstance(given, (str, Mapping)) and list(given) == ["none"]):
        return {}
    if isinstance(given, Mapping):
        return {str(key): _number(value) if isinstance(value, str) else value for key, value in given.items()}
    arguments: dict[str, Any] = {}
    for word in given.split() if isinstance(given, str) else given:
        key, separator, value = str(word).partition("=")
        if not separator or not key or not value:
            raise ValueError(f"Schedule arguments are given as key=value, e.g. patience=3; got {word!r}.")
        if key in arguments:
            raise ValueError(f"The schedule argument {key!r} is given twice: {arguments[key]!r} and {value!r}.")
        arguments[key] = _number(value)
    return arguments


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
