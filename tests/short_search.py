"""The trust checks take most of a tiny run's seconds: a few images, steps and queries are enough here.

Tests of what they find use the fixture `whole_search`.
"""

import importlib
from types import ModuleType

import pytest

from hf_robust_ft.evaluation.second_opinion import LONG_SQUARE, LONG_TARGETED, LONG_TWO_CLASSES, SQUARE, TARGETED

CHECKING = (
    "evaluation.evaluate",
    "evaluation.measure_batch",
    "training.robust_evaluation",
    "experiments.planning.passes",
)
CHECKED_IMAGES = 16
SHORT = [
    (SQUARE, {"queries": 5}),
    (TARGETED, {"steps": 2}),
    (LONG_SQUARE, {"queries": 5}),
    (LONG_TARGETED, {"steps": 2, "restarts": 1}),
    (LONG_TWO_CLASSES, {"steps": 2, "restarts": 1}),
    *((importlib.import_module(f"hf_robust_ft.{name}"), {"CHECKED_IMAGES": CHECKED_IMAGES}) for name in CHECKING),
]
SHIPPED = [(owner, {name: getattr(owner, name) for name in settings}) for owner, settings in SHORT]


def set_lengths(lengths: list) -> None:
    for owner, settings in lengths:
        for name, value in settings.items():
            # Attacks are frozen, and imported by name here and there.
            (setattr if isinstance(owner, ModuleType) else object.__setattr__)(owner, name, value)


@pytest.fixture(scope="module")
def whole_search():
    """The package's own lengths, for a module's `pytestmark = pytest.mark.usefixtures("whole_search")`."""
    set_lengths(SHIPPED)
    yield
    set_lengths(SHORT)


@pytest.fixture
def all_images_checked(monkeypatch):
    """Where one way to draw the images is compared with another, which differ unless all are taken."""
    for owner, settings in SHIPPED:
        if isinstance(owner, ModuleType):
            monkeypatch.setattr(owner, "CHECKED_IMAGES", settings["CHECKED_IMAGES"])


set_lengths(SHORT)
