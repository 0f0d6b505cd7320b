"""A parser of command lines whose complaints are exceptions, so that a caller can show them in one line."""

import argparse
from typing import NoReturn


class CommandParser(argparse.ArgumentParser):
    """`ArgumentParser` that raises instead of printing its usage and leaving the process.

    Raises:
        ValueError: by `parse_args`, for anything that cannot be parsed.
    """

    def error(self, message: str) -> NoReturn:
        raise ValueError(message.removeprefix("argument "))
