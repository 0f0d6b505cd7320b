"""The trust check's second opinion takes most of a tiny run's seconds: a few steps and queries are enough here.

Tests of what it finds use the fixture `whole_search`.
"""

import pytest

from hf_robust_ft.evaluation.second_opinion import LONG_SQUARE, LONG_TARGETED, LONG_TWO_CLASSES, SQUARE, TARGETED

SHORT = [
    (SQUARE, {"queries": 20}),
    (TARGETED, {"steps": 3}),
    (LONG_SQUARE, {"queries": 20}),
    (LONG_TARGETED, {"steps": 4, "restarts": 1}),
    (LONG_TWO_CLASSES, {"steps": 4, "restarts": 1}),
]
SHIPPED = [(attack, {name: getattr(attack, name) for name in settings}) for attack, settings in SHORT]


def set_lengths(lengths: list) -> None:
    for attack, settings in lengths:
        for name, value in settings.items():
            object.__setattr__(attack, name, value)  # frozen, and imported by name here and there


@pytest.fixture(scope="module")
def whole_search():
    """The package's own lengths, for a module's `pytestmark = pytest.mark.usefixtures("whole_search")`."""
    set_lengths(SHIPPED)
    yield
    set_lengths(SHORT)


set_lengths(SHORT)
