"""The script that kills training; what it finds is also checked, kill by kill, in
tests/training/base/test_durable.py."""

import json
import sys

import pytest
import torch

from hf_robust_ft.benchmarks import kill_and_resume
from hf_robust_ft.benchmarks.kill_and_resume import SETTINGS, Kill, differences, markdown_table


def test_every_bit_counts():
    one = {"weights": {"a": torch.tensor([1.0, 2.0])}, "eps": [0.0, 0.5], "memory": None}
    assert differences(one, {**one, "weights": {"a": torch.tensor([1.0, 2.0])}}) == []
    other = {"weights": {"a": torch.tensor([1.0, 2.0 + 2e-7])}, "eps": [0.0, 0.25], "memory": None}
    assert differences(one, other) == ["weights.a.", "eps."]
    assert differences(one, {"weights": {}}) == [""]


def test_the_table_counts_kills_and_runs():
    kills = [Kill("hinge", 0, "save", 6, True, 3, 0), Kill("hinge", 1, "step", 4, False, 3, 0)]
    table = markdown_table(kills, {"hinge": [[], ["weights.a."]], "auto": []})
    assert table.splitlines()[2:] == ["| hinge | 2 | 1 | 1 | 1 | 2 | 1 |", "| auto | 0 | 0 | 0 | 0 | 0 | 0 |"]


@pytest.mark.slow
def test_killed_runs_come_to_the_same_end(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["", "--kills", str(len(SETTINGS)), "--output", str(tmp_path / "kills.json")])
    kill_and_resume.main()
    result = json.loads((tmp_path / "kills.json").read_text())
    assert len(result["kills"]) == len(SETTINGS) and result["differences"] == {}
    assert result["compared"] == dict.fromkeys(SETTINGS, 1)
    assert {kill["incomplete"] for kill in result["kills"]} == {0}
