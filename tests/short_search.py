"""Square, the trust check's search without gradients, takes most of a tiny run's seconds: 20 queries are enough here.

Tests of what it finds use the fixture `whole_search`.
"""

import pytest

from hf_robust_ft.evaluation.second_opinion import SQUARE

SHIPPED, SHORT = SQUARE.queries, 20


def set_queries(queries: int) -> None:
    object.__setattr__(SQUARE, "queries", queries)  # frozen, and imported by name here and there


@pytest.fixture(scope="module")
def whole_search():
    """The queries of the package, for a module's `pytestmark = pytest.mark.usefixtures("whole_search")`."""
    set_queries(SHIPPED)
    yield
    set_queries(SHORT)


set_queries(SHORT)
