"""Figures as the cells of a Markdown table."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hf_robust_ft.experiments.grid.measures import ACCURACY
from hf_robust_ft.provenance.plain_text import table_cell

NONE = "-"  # where there is no figure
SHORT = {"clean": "clean", "adversarial": "adv.", "expected": "expected"}  # scores, above their columns


def table(head: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int) -> str:
    """A Markdown table whose first columns hold text and whose others hold numbers."""
    rule = [":---" if column < text_columns else "---:" for column in range(len(head))]
    return "\n".join(f"| {' | '.join(map(table_cell, row))} |" for row in (head, rule, *rows))


def of_score(summary: Mapping[str, Any]) -> str:
    """What a heading adds where a task has several scores, ", mean IoU"; "" for accuracy."""
    score = summary.get("score", ACCURACY.name)  # summaries of older versions name none
    return "" if score == ACCURACY.name else f", {score}"


def percent(share: float) -> str:
    return f"{100 * share:.2f}"


def points(difference: float) -> str:
    return f"{100 * difference:+.2f}"
