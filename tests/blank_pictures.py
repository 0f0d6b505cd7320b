"""Rendering its pictures takes more than half of a tiny run's seconds: here a blank one is written in place of each.

Tests of what pictures look like use the fixture `rendered_pictures`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from matplotlib.figure import Figure
from PIL import Image

RENDER = Figure.savefig


def blank(figure: Figure, path, **options) -> None:
    Image.new("RGB", (8, 8), "white").save(path)


@contextmanager
def rendering() -> Iterator[None]:
    """Pictures as users have them, where another process draws them again and must come to the same."""
    Figure.savefig = RENDER
    try:
        yield
    finally:
        Figure.savefig = blank


@pytest.fixture
def rendered_pictures(monkeypatch):
    monkeypatch.setattr(Figure, "savefig", RENDER)


Figure.savefig = blank
