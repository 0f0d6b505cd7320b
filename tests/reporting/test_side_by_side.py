"""Several reports in one table."""

import dataclasses

from conftest import REPOSITORY

from hf_robust_ft import RobustnessReport
from hf_robust_ft.reporting.side_by_side import side_by_side

REPORT = RobustnessReport.from_json(REPOSITORY / "model_cards" / "quickstart" / "robustness_report.json")


def rows(table: str) -> list[list[str]]:
    return [line[2:-2].split(" | ") for line in table.splitlines()]


def test_each_model_has_a_row_for_each_way_it_was_measured():
    unchecked = dataclasses.replace(REPORT, checks=[])
    table = rows(side_by_side({"ours": REPORT, "unchecked": unchecked}))
    assert {len(row) for row in table} == {5}
    assert [row[:2] for row in table[2:]] == [
        ["ours", "clean"],
        ["ours", "paper"],
        ["ours", "converged"],
        ["unchecked", "clean"],
        ["unchecked", "paper (doubtful)"],
        ["unchecked", "converged (doubtful)"],
    ]
    first = REPORT.convergence["rounds"][0]
    assert table[3][3] == f"{100 * first['adversarial_accuracy']:.2f} %"  # the paper's stands beside the converged
    assert table[4][3].startswith(f"**{100 * REPORT.adversarial_accuracy:.2f} %**")
