"""Class names with anything in them, wherever one is shown."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from page_runs import make_report

from hf_robust_ft.provenance.plain_text import markdown, one_line, table_cell
from hf_robust_ft.reporting import render_model_card
from hf_robust_ft.reporting.example_pairs import ExamplePairs
from hf_robust_ft.reporting.examples import _plot_strip

NAMES = ["cat | dog", "two\nlines", "# head", "$a_$", "<b>", "\x1b[31mred", "[x](y)", "`code`", "tab\tone\r"]


@pytest.fixture
def report():
    rows = [dict(make_report().per_class[0], **{"class": name}) for name in NAMES]
    return replace(make_report(), per_class=rows).with_metadata(dataset="my | data\n# set")


def test_a_cards_tables_keep_their_columns(report):
    card = render_model_card(report)
    table = card.split("## By class\n\n")[1].split("\n\n")[0].splitlines()
    assert len(table) == 2 + len(NAMES)
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {6}
    card = re.sub("```.*?```", "", card, flags=re.S)  # a command is quoted for the shell
    assert "<b>" not in card and "\n# set" not in card and "\x1b" not in card


def test_a_terminals_table_keeps_its_lines(report):
    lines = report.class_table().splitlines()
    assert len(lines) == 1 + len(NAMES) and len(set(map(len, lines))) == 1
    assert all(line.isprintable() for line in lines)


def test_a_picture_takes_any_name(tmp_path, rendered_pictures):
    image = np.zeros((len(NAMES), 3, 4, 4), dtype=np.float32)
    names = np.array(NAMES)
    for titles in ExamplePairs(image, image, names, names, names[::-1], "Linf 4/255").captions():
        assert all(title.isprintable() for title in titles)
        _plot_strip(torch.zeros(3, 4, 4), torch.zeros(3, 4, 4), titles, tmp_path / "strip.png")
        assert (tmp_path / "strip.png").is_file()


def test_escaping_leaves_ordinary_names_alone():
    for name in ("Abyssinian", "great white shark", "Boeing 737-800", "bird_of_paradise", "été"):
        assert one_line(name) == markdown(name) == table_cell(name) == name
