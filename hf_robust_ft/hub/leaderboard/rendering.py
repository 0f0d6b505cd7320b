"""A leaderboard as Markdown, which is also what is printed, and as an HTML page."""

from hf_robust_ft.hub.leaderboard.rankings import Leaderboard, Ranking
from hf_robust_ft.hub.leaderboard.results import Result
from hf_robust_ft.provenance.plain_text import markdown
from hf_robust_ft.reporting.page.assets import GENERATOR, render_template

COLUMNS = (
    "", "model", "expected robustness", "95 % interval", "adversarial", "after 10 steps", "clean", "reliability",
)  # fmt: skip
TITLE = "Robustness leaderboard"
CAUTION = (
    "Figures are what the repositories say of themselves, not measured again; each is an upper bound found by an "
    "attack: protocol reliable, the worst case of four attacks, is the one to rank by. A ranking holds one setting "
    "only: other tasks, data, norms, eps, protocols and attacks cannot be compared; of image-segmentation the figures "
    "are mean IoU. "
    "Doubtful figures, which are not checked or failed their checks, stand below all that are ok."
)


def to_markdown(board: Leaderboard) -> str:
    """The rankings as Markdown tables, aligned to be read as they are, then what could not be read."""
    lines = [f"<!-- {GENERATOR} -->", f"# {TITLE}", "", CAUTION, ""]
    for ranking in board.rankings:
        lines += [f"## {markdown(str(ranking.setting))}", "", *_table([COLUMNS, *_rows(ranking, link=True)]), ""]
    if board.left_out:
        lines += [f"Left out: {board.left_out} of other settings.", ""]
    if board.problems:
        lines += ["## Not read, or doubtful", ""]
        lines += [f"- {markdown(each.source)}: {markdown(each.reason)}" for each in board.problems]
    return "\n".join(lines).rstrip() + "\n"


def to_html(board: Leaderboard) -> str:
    """The same as a self-contained page."""
    return render_template(
        "leaderboard.html",
        title=TITLE,
        caution=CAUTION,
        columns=COLUMNS,
        rankings=[
            {"setting": str(ranking.setting), "rows": list(zip(ranking.results, _rows(ranking), strict=True))}
            for ranking in board.rankings
        ],
        problems=board.problems,
        left_out=board.left_out,
    )


def _rows(ranking: Ranking, link: bool = False) -> list[list[str]]:
    """A row of text a result, in the order of `COLUMNS`."""
    return [_row(place, result, link) for place, result in zip(ranking.places, ranking.results, strict=True)]


def _row(place: int, result: Result, link: bool) -> list[str]:
    def percent(share: float | None) -> str:
        return "" if share is None else f"{100 * share:.2f} %"

    name, reliability = (markdown(text) if link else text for text in (result.source, result.reliability))
    return [
        str(place),
        f"[{name}]({result.url})" if link and result.url else name,
        percent(result.expected_robustness),
        " to ".join(map(percent, result.interval)) if result.interval else "",
        percent(result.adversarial_accuracy) + ("" if result.settled in (True, None) else " (not settled)"),
        percent(result.first_adversarial),
        percent(result.clean_accuracy),
        reliability if result.is_reliable else f"**{reliability}**" if link else reliability,
    ]


def _table(rows: list) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]
