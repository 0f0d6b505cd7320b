"""Progress in a log file is a line a minute, in a terminal a bar."""

import sys

import pytest
from tqdm import tqdm as bar

from hf_robust_ft.evaluation import progress
from hf_robust_ft.evaluation.progress import SECONDS, ProgressLines, counted, progress_bar


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when they are told to."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_a_minute_and_none_for_what_takes_less(clock, capsys):
    with ProgressLines(1000, "Training", "steps") as lines:
        for step in range(1, 241):  # four minutes
            clock[0] = step
            lines.update()
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 240 // SECONDS
    assert told[0] == "Training: 60 of 1000 steps (6%), 01:00 so far, about 15:40 left"

    clock[0] = 0
    with ProgressLines(10, "Training", "steps") as lines:
        for second in range(SECONDS):
            clock[0] = second
            lines.update()
    assert not capsys.readouterr().err


def test_what_is_left_is_told_at_the_last_minutes_pace_with_the_scores(clock, capsys):
    lines = ProgressLines(300, "Robust evaluation", "images")
    lines.set_postfix(clean="99.0%", adversarial="50.0%")
    for clock[0], done in ((60, 100), (120, 50)):  # slower now: 150 are left at 50 a minute
        lines.update(done)
    assert capsys.readouterr().err.splitlines()[1] == (
        "Robust evaluation: 150 of 300 images (50%), 02:00 so far, about 03:00 left, clean 99.0%, adversarial 50.0%"
    )
    silent = ProgressLines(300, "Robust evaluation", "images", disable=True)
    clock[0] = 1000
    silent.update(1)
    assert not capsys.readouterr().err


def test_calls_are_counted_where_nobody_knows_how_many_there_will_be(clock, capsys):
    with ProgressLines(None, "Trust checks", "forward passes") as lines:
        double = counted(lambda number: 2 * number, lines)
        for clock[0] in (20, 40, 70):
            assert double(4) == 8
    assert capsys.readouterr().err == "Trust checks: 3 forward passes, 01:10 so far\n"


def test_a_terminal_gets_a_bar_and_a_file_lines(monkeypatch, capsys):
    for watched, kind in ((True, bar), (False, ProgressLines)):
        monkeypatch.setattr(sys.stderr, "isatty", lambda watched=watched: watched, raising=False)
        shown = progress_bar(3, "Training", "steps")
        assert isinstance(shown, kind)
        shown.update(3)
        shown.close()
        assert ("3/3" in capsys.readouterr().err) == watched
