"""Figures as the cells of a Markdown table."""

from collections.abc import Iterable, Sequence

from hf_robust_ft.provenance.plain_text import table_cell

NONE = "-"  # where there is no figure
SHORT = {"clean": "clean", "adversarial": "adv.", "expected": "expected"}  # scores, above their columns


def table(head: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int) -> str:
    """A Markdown table whose first columns hold text and whose others hold numbers."""
    rule = [":---" if column < text_columns else "---:" for column in range(len(head))]
    return "\n".join(f"| {' | '.join(map(table_cell, row))} |" for row in (head, rule, *rows))


def percent(share: float) -> str:
    return f"{100 * share:.2f}"


def points(difference: float) -> str:
    return f"{100 * difference:+.2f}"
