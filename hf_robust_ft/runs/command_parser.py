"""A parser of command lines whose complaints are exceptions, so that a caller can show them in one line."""

import argparse
import re
from typing import Any, NoReturn


class CommandParser(argparse.ArgumentParser):
    """`ArgumentParser` that raises instead of printing its usage and leaving the process.

    Raises:
        ValueError: by `parse_args`, for anything that cannot be parsed.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # Values like -1e-3 and -4/255 are for their options to refuse, not unknown flags.
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def error(self, message: str) -> NoReturn:
        raise ValueError(message.removeprefix("argument "))
