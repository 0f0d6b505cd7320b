"""A section that fails, dies or hangs costs its own rows and its own time; the rest still reports."""

import os
import time

import pytest

from hf_robust_ft.benchmarks.gpu import running
from hf_robust_ft.benchmarks.gpu.cases import Case, Setup
from hf_robust_ft.benchmarks.gpu.running import run_sections
from hf_robust_ft.benchmarks.gpu.sections import SECTIONS, Section
from hf_robust_ft.benchmarks.gpu.table import render

SETUP = Setup("cpu", True, ("ViT-B/16",), 2, 1, 1)


@pytest.fixture
def sections(monkeypatch):
    """Sections by name, each made of functions that measure."""

    def install(**measures):
        made = {
            name: Section(name, 1, lambda setup, all=all: (Case("m", str(n), each) for n, each in enumerate(all)))
            for name, all in measures.items()
        }
        monkeypatch.setattr(running, "SECTIONS", made)
        return list(made)

    return install


def fails():
    raise RuntimeError("CUDA out of memory.\nTried to allocate much")


def test_what_fails_is_a_row_and_the_rest_still_reports(sections):
    names = sections(first=[fails, lambda: {"x": 1}], dead=[lambda: os._exit(3), fails], last=[lambda: {"y": 2.0}])
    noted = []
    rows = run_sections(SETUP, 60, names, lambda rows: noted.append(len(rows)))
    assert [(row["section"], row.get("error"), row.get("figures")) for row in rows] == [
        ("first", "RuntimeError: CUDA out of memory.", None),
        ("first", None, {"x": 1}),
        ("dead", "the process ended with status 3", None),
        ("last", None, {"y": 2.0}),
    ]
    assert "Tried to allocate much" in rows[0]["traceback"] and rows[2]["setting"] == "0" and noted == [2, 3, 4]


def test_a_section_whose_cases_cannot_be_made_says_so(sections, monkeypatch):
    names = sections(bad=[], good=[lambda: {"x": 1}])

    def cannot(setup):
        raise ValueError("no such model")
        yield

    monkeypatch.setitem(running.SECTIONS, "bad", Section("bad", 1, cannot))
    rows = run_sections(SETUP, 60, names)
    assert [row.get("error") for row in rows] == ["ValueError: no such model", None]


def test_the_time_is_kept_and_what_was_measured_by_then_stays(sections):
    begun = time.monotonic()
    names = sections(hangs=[lambda: {"x": 1}, lambda: time.sleep(60)], quick=[lambda: {"y": 2}])
    rows = run_sections(SETUP, 3, names)
    assert time.monotonic() - begun < 5
    assert [row.get("figures") for row in rows] == [{"x": 1}, None, {"y": 2}]
    assert rows[1]["error"].startswith("stopped at the section's limit of ") and rows[1]["setting"] == "1"


def test_a_section_for_which_no_time_is_left_is_named(sections):
    rows = run_sections(SETUP, 0.5, sections(late=[lambda: {"x": 1}]))
    assert rows == [{"section": "late", "error": "not begun: the time was up"}]


def test_every_row_is_in_the_table():
    rows = [
        {"section": "attack", "model": "ViT-B/16", "setting": "bf16", "figures": {"ours / bare passes": RATIO, "n": 2}},
        {"section": "curve", "error": "not begun: the time was up"},
    ]
    report = {
        "card": "NVIDIA H200", "torch": "2.14", "minutes": 8, "seconds": 471.2, "rows": rows,
        "setup": {"small": False, "batch_size": 64, "steps": 7},
    }  # fmt: skip
    head, _, columns, _, *lines = render(report).splitlines()
    assert head.startswith("NVIDIA H200, torch 2.14, 224 px, 64 images a batch")
    assert columns == "| section | model | setting | figures |"
    title = SECTIONS["attack"].title
    assert lines == [
        f"| {title} | ViT-B/16 | bf16 | ours / bare passes 1.031 (1.000..1.250); n 2 |",
        f"| {SECTIONS['curve'].title} |  |  | not measured: not begun: the time was up |",
    ]


RATIO = {"median": 1.0314, "min": 1.0, "max": 1.25}
