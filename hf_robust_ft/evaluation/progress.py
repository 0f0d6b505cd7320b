"""Progress: a bar where somebody watches, a line a minute in a log file."""

import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm.auto import tqdm

SECONDS = 60  # between lines


def is_watched() -> bool:
    """Whether progress goes to a terminal or a notebook, which can draw a bar, rather than to a file."""
    return sys.stderr.isatty() or any(each.__module__ == "tqdm.notebook" for each in tqdm.__mro__)


class ProgressLines:
    """Of `tqdm` what a log file has a use for: a line on stderr after each minute, none for what takes less.

    Args:
        total: how many there are; None where nobody knows.
        desc: what is under way.
        unit: of what.
        disable: say nothing.
    """

    def __init__(self, total: int | None, desc: str, unit: str, disable: bool = False):
        self.total, self.desc, self.unit, self.disable = total, desc, unit, disable
        self.n, self.scores = 0, ""
        self._start = self._said_at = time.monotonic()
        self._said_n = 0

    def update(self, n: int = 1) -> None:
        self.n += n
        now = time.monotonic()
        if self.disable or now - self._said_at < SECONDS:
            return
        share, left = f"{self.n} {self.unit}", ""
        if self.total is not None:
            share = f"{self.n} of {self.total} {self.unit} ({self.n / max(self.total, 1):.0%})"
            # At the pace of the last minute: steps under attack take longer than those before.
            seconds = (self.total - self.n) * (now - self._said_at) / max(self.n - self._said_n, 1)
            left = f", about {tqdm.format_interval(seconds)} left"
        self._said_at, self._said_n = now, self.n
        spent = tqdm.format_interval(now - self._start)
        print(f"{self.desc}: {share}, {spent} so far{left}{self.scores}", file=sys.stderr, flush=True)

    def set_postfix(self, **scores: Any) -> None:
        self.scores = "".join(f", {name} {value}" for name, value in scores.items())

    @staticmethod
    def write(text: str) -> None:
        print(text, flush=True)

    def close(self) -> None:
        """Nothing is left open."""

    def __enter__(self) -> "ProgressLines":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def progress_bar(
    total: int | None, desc: str, unit: str, *, disable: bool = False, leave: bool = True
) -> tqdm | ProgressLines:
    """A bar, or lines, by where they would go; the bar stays when done, or (`leave=False`) goes."""
    if is_watched():
        return tqdm(total=total, desc=desc, unit=f" {unit}", disable=disable, leave=leave, dynamic_ncols=True)
    return ProgressLines(total, desc, unit, disable)


def counted(call: Callable, bar: tqdm | ProgressLines) -> Callable:
    """The same function, whose calls move the bar on."""

    def moving(*args: Any) -> Any:
        bar.update()
        return call(*args)

    return moving
