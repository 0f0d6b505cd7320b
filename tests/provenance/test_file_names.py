"""A name from outside is one part of a path, and two names are two parts."""

import argparse
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_robust_ft.experiments.grid.cells import Cell
from hf_robust_ft.provenance.file_names import as_file_name, check_output_dir
from hf_robust_ft.runs.options import default_output_dir, default_sweep_dir

HOSTILE = [
    "../../x",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a\0b",
    "x" * 5000,
    "..\\..\\x",
    "é" * 200,
    "~/x",
    "a\nb",
    "C:x",
    "-",
]
texts = st.text(max_size=300) | st.sampled_from(HOSTILE) | st.text(alphabet="./\\~:\0", max_size=9)


def is_one_part(name: str) -> bool:
    return (
        name not in ("", ".", "..")
        and not any(mark in name for mark in "/\\\0")
        and len(os.fsencode(f"{name}.json")) < 255
        and not name.startswith(".")
    )


@settings(derandomize=True, database=None, deadline=None, max_examples=200)
@given(text=texts)
def test_any_text_is_one_part_of_a_path(text):
    text = text.encode("utf-8", "replace").decode()  # a lone surrogate is no name anywhere
    assert is_one_part(as_file_name(text)) and as_file_name(text) == as_file_name(as_file_name(text))


def test_long_names_that_differ_at_the_end_stay_apart():
    assert as_file_name("x" * 300 + "a") != as_file_name("x" * 300 + "b")


@pytest.mark.parametrize("hostile", HOSTILE)
def test_folders_and_cells_of_hostile_names_stay_where_they_belong(hostile, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = argparse.Namespace(
        model=hostile, dataset=hostile, norm="Linf", eps="4/255", eps_schedule=hostile, seed=0
    )  # fmt: skip
    for folder in (default_output_dir(seen), default_sweep_dir("diagnose", seen)):
        first, name = folder.split("/", 1)
        assert first == "runs" and is_one_part(name)
        os.makedirs(folder, exist_ok=True)
    cell = Cell(hostile, hostile, "Linf", hostile, hostile, 0)
    assert is_one_part(cell.name)
    (tmp_path / f"{cell.name}.json").write_text("{}")
    assert {path.name for path in tmp_path.iterdir()} == {"runs", f"{cell.name}.json"}


def test_what_can_be_made_is_fine_and_a_file_is_not(tmp_path):
    for folder in (tmp_path, tmp_path / "new" / "newer", None, "relative"):
        check_output_dir(folder)
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    refused = {"file": "is a file", "file/x": "lies below", "broken/x": "lies below", "a\0": "no path"}
    for folder, message in refused.items():
        with pytest.raises(ValueError, match=message):
            check_output_dir(tmp_path / folder)
