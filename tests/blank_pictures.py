"""Rendering its pictures takes more than half of a tiny run's seconds: here a blank one is written in place of each.

Tests of what pictures look like use the fixture `rendered_pictures`.
"""

import pytest
from matplotlib.figure import Figure
from PIL import Image

RENDER = Figure.savefig


def blank(figure: Figure, path, **options) -> None:
    Image.new("RGB", (8, 8), "white").save(path)


@pytest.fixture
def rendered_pictures(monkeypatch):
    monkeypatch.setattr(Figure, "savefig", RENDER)


Figure.savefig = blank
