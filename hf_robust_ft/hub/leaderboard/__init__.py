"""Robust models ranked by what their repositories or folders say of them; what `hf-robust-ft leaderboard` does."""

from hf_robust_ft.hub.leaderboard.rankings import Leaderboard, Ranking
from hf_robust_ft.hub.leaderboard.rendering import to_html, to_markdown
from hf_robust_ft.hub.leaderboard.results import Result
from hf_robust_ft.hub.leaderboard.sources import TAG, Problem, read_sources, read_tagged

__all__ = [
    "TAG",
    "Leaderboard",
    "Problem",
    "Ranking",
    "Result",
    "read_sources",
    "read_tagged",
    "to_html",
    "to_markdown",
]
