"""Several reports in one table: each model by each way it was measured."""

from collections.abc import Mapping

from hf_robust_ft.evaluation.reliability import is_reliable
from hf_robust_ft.evaluation.report import RobustnessReport
from hf_robust_ft.reporting.measured_table import UNMEASURED, measured_rows

HEADER = ("model", "measured by", "attack", "accuracy at the largest eps", "expected robustness")


def side_by_side(reports: Mapping[str, RobustnessReport]) -> str:
    """A Markdown table with the rows of `measured_rows` that were measured, those of a doubtful report marked so.

    Args:
        reports: by the name that a row is to have.
    """
    lines = [_line(HEADER), _line(["---"] * len(HEADER))]
    for name, report in reports.items():
        doubt = "" if is_reliable(report) else " (doubtful)"
        rows = [row for row in measured_rows(report, doubt, doubt) if row[1] not in UNMEASURED.values()]
        lines += [_line((name, *row)) for row in rows]
    return "\n".join(lines)


def _line(cells: tuple[str, ...] | list[str]) -> str:
    return f"| {' | '.join(cells)} |"
