"""A parser of command lines whose complaints are exceptions, so that a caller can show them in one line."""

import argparse
import re
from collections.abc import Collection, Sequence
from typing import Any, NoReturn

ALL = ("--help-all", "--help_all")


def wants_all(argv: Sequence[str]) -> bool:
    """Whether help is asked for with every option in it."""
    return any(word in ALL for word in argv)


class CommandParser(argparse.ArgumentParser):
    """`ArgumentParser` with `--help-all`, that raises instead of printing its usage and leaving the process.

    Raises:
        ValueError: by `parse_args`, for anything that cannot be parsed.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # Values like -1e-3 and -4/255 are for their options to refuse, not unknown flags.
        self._negative_number_matcher = re.compile(r"-\.?\d")
        if self.add_help:
            for word, told in zip(ALL, ("show every option and exit", argparse.SUPPRESS), strict=True):
                self.add_argument(word, action="help", help=told)

    def show_only(self, names: Collection[str]) -> None:
        """Leave in the help what most people need, and say how many more options there are."""
        rest = [
            action
            for action in self._actions
            if action.dest not in ("help", "help_all", *names) and action.help is not argparse.SUPPRESS
        ]
        for action in rest:
            action.help = argparse.SUPPRESS
        self.epilog = f"{len(rest)} more options: {self.prog} --help-all. {self.epilog or ''}"

    def error(self, message: str) -> NoReturn:
        raise ValueError(message.removeprefix("argument "))
