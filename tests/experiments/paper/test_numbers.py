"""The paper's numbers are read whole and under our names."""

from importlib.resources import files

import pytest
from conftest import REPOSITORY

from hf_robust_ft.data.specs import SPECS
from hf_robust_ft.experiments.paper import numbers
from hf_robust_ft.experiments.paper.numbers import PaperCell, Scores, paper_scores
from hf_robust_ft.models.backbones import BACKBONES


def test_names_are_those_of_the_package():
    assert {each.paper_name: alias for alias, each in BACKBONES.items()} == numbers.MODELS
    assert set(numbers.DATASETS.values()) == set(SPECS)


@pytest.mark.parametrize(
    ("eps_255", "setting", "means"),
    [
        (4, "fix", (38.15, 20.61, 29.20)),
        (4, "hinge", (76.18, 36.04, 56.59)),
        (8, "fix", (19.40, 8.17, 13.29)),
        (8, "hinge", (69.35, 21.71, 44.47)),
    ],
)
def test_means_over_30_configurations(eps_255, setting, means):
    """Computed independently of this code when the table was typed."""
    rows = [
        scores
        for cell, scores in numbers.fix_and_schedule().items()
        if (cell.eps_255, cell.setting) == (eps_255, setting)
    ]
    assert len(rows) == 30
    assert [100 * sum(column) / 30 for column in zip(*rows, strict=True)] == pytest.approx(means, abs=0.0051)


def test_every_table_has_its_rows_and_values_within_0_and_1():
    tables = {
        "1, 2": numbers.fix_and_schedule(),
        "6": numbers.under_attack("APGD"),
        "6, AutoAttack": numbers.under_attack("AutoAttack"),
        "7": numbers.start_and_end(),
        "8": numbers.uniform_and_auto(),
    }
    assert {name: len(table) for name, table in tables.items()} == {
        "1, 2": 120, "6": 8, "6, AutoAttack": 8, "7": 30, "8": 12,
    }  # fmt: skip
    for table in tables.values():
        for cell, scores in table.items():
            assert cell.model in BACKBONES and cell.dataset in SPECS
            assert 0 <= scores.adversarial <= scores.clean <= 1
            # R50 and CNX on Aircraft are printed 0.16 and 0.02 points below their adversarial accuracy at 8/255.
            assert scores.adversarial - 0.002 <= scores.expected <= scores.clean


def test_each_setting_comes_from_its_table():
    assert paper_scores("swin", "stanford_cars", 4 / 255, "fix") == Scores(0.602, 0.297, 0.4474)
    assert paper_scores("swin", "stanford_cars", 4 / 255, "hinge:0,0") == Scores(0.602, 0.319, 0.4589)
    assert paper_scores("swin", "stanford_cars", 8 / 255, "hinge:12,30") == Scores(0.781, 0.266, 0.5506)
    assert paper_scores("clip_cnx", "caltech256", 4 / 255, "uniform") == Scores(0.7225, 0.4707, 0.5966)
    assert paper_scores("swin", "fgvc_aircraft", 4 / 255, "auto") == Scores(0.733, 0.294, 0.5296)
    assert numbers.under_attack("AutoAttack")[PaperCell("swin", "stanford_cars", 8, "fix")].adversarial == 0.024


@pytest.mark.parametrize(
    "cell",
    [
        ("swin", "stanford_cars", 8 / 255, "auto"),
        ("swin", "stanford_cars", 4.5 / 255, "fix"),
        ("swin", "stanford_cars", 2 / 255, "fix"),
        ("swin", "digits", 4 / 255, "fix"),
        ("vit", "stanford_cars", 4 / 255, "hinge:12,30"),
        ("swin", "stanford_cars", 4 / 255, "standard"),
    ],
)
def test_none_where_the_paper_prints_none(cell):
    assert paper_scores(*cell) is None


def test_the_readers_cannot_be_spoilt():
    with pytest.raises(TypeError):
        numbers.fix_and_schedule()[PaperCell("swin", "stanford_cars", 4, "fix")] = None
    with pytest.raises(ValueError, match="APGD and AutoAttack, not 'PGD'"):
        numbers.under_attack("PGD")


def test_figure_8_by_model_and_dataset():
    delays = numbers.delays()
    assert set(delays) == {(model, dataset) for model in ("swin", "vit") for dataset in SPECS}
    assert all(list(by_eps) == list(range(10)) for by_eps in delays.values())
    assert sum(delays["swin", "fgvc_aircraft"].values()) / 10 == pytest.approx(37, abs=0.5)  # the paper's T2
    assert delays["vit", "stanford_cars"][5] == 50


def test_the_files_are_declared_as_package_data():
    declared = (REPOSITORY / "setup.cfg").read_text(encoding="utf-8")
    assert "paper/*.csv" in declared and "paper/README.md" in declared
    folder = files("hf_robust_ft.experiments.paper")
    readme = folder.joinpath("README.md").read_text(encoding="utf-8")
    assert all(path.name in readme for path in folder.iterdir() if path.name.endswith(".csv"))
