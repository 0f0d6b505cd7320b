"""How each setting looks in a grid's pictures."""

from collections.abc import Mapping, Sequence

from hf_robust_ft.experiments.grid.comparison import ScoreTable
from hf_robust_ft.experiments.grid.results import MeasuredCell
from hf_robust_ft.reporting.plots import COLOURS

_LINES = ("-", "--", ":", "-.")  # for settings beyond the colours
_MARKERS = ("o", "s", "^", "D")
_HATCHES = ("", "///", "...", "xxx")

Styles = Mapping[str, Mapping[str, str]]  # of `styles_of`


def styles_of(results: Sequence[MeasuredCell]) -> dict[str, dict[str, str]]:
    """The look of each setting, in the order of legends."""
    return {
        setting: {
            "color": COLOURS[place % len(COLOURS)],
            "linestyle": _LINES[place // len(COLOURS) % len(_LINES)],
            "marker": _MARKERS[place // len(COLOURS) % len(_MARKERS)],
            "hatch": _HATCHES[place // len(COLOURS) % len(_HATCHES)],
        }
        for place, setting in enumerate(ScoreTable.from_results(results).settings)
    }
