"""Methods beside each other in one grid: each attacks in its own way, all are measured alike and say what they took."""

import json

import pytest

from hf_robust_ft.cli.main import main
from hf_robust_ft.experiments.grid.arguments import GridArguments, read_grid


def test_methods_share_a_table_and_say_what_they_took(grid_argv, tmp_path):
    settings = [each for each in GridArguments(**read_grid("methods")[0]).settings if "hinge" not in each]
    assert [each.partition("=")[0] for each in settings] == [
        "fix", "trades_fix", "trades_1_fix", "mart_fix", "twins_at_fix", "autolora_fix", "roli_fix"
    ]  # fmt: skip
    settings = [each.replace("probe_epochs:12", "probe_epochs:2") for each in settings]  # as many as the grid's
    settings = [each for each in settings if "twins" not in each]  # the grid's model here has no BatchNorm
    argv = [word for word in grid_argv if word not in ("standard", "fix")]
    argv[argv.index("--settings") + 1 : argv.index("--settings") + 1] = settings
    main(argv)
    cells = {path.name.split(".")[4]: json.loads(path.read_text()) for path in (tmp_path / "grid/cells").glob("*.json")}
    images = cells["fix"]["passes"]["training"]
    assert {name: cell["passes"] for name, cell in cells.items()} == {
        "fix": {"training": images, "attack": images, "forward": images},
        "trades_fix": {"training": 2 * images, "attack": images, "forward": 2 * images},
        "trades_1_fix": {"training": 2 * images, "attack": images, "forward": 2 * images},
        "mart_fix": {"training": 2 * images, "attack": images, "forward": images},
        "autolora_fix": {"training": 2 * images, "attack": images, "forward": 2 * images},
        "roli_fix": dict.fromkeys(("training", "attack", "forward"), 2 * images),
    }
    assert {cell["report"]["attack"]["loss"] for cell in cells.values()} == {"ce"}
    assert cells["trades_fix"]["configuration"]["objective"] == "trades"
    assert [cells[name]["configuration"]["objective_beta"] for name in ("trades_fix", "trades_1_fix")] == [6.0, 1.0]
    tables = (tmp_path / "grid" / "tables.md").read_text()
    assert "| trades_fix | fix |" in tables and "mart_fix" in tables  # over the reference


def test_a_cell_of_another_objective_is_not_taken_for_the_same(grid_argv, capsys):
    argv = [word for word in grid_argv if word not in ("standard", "fix")]
    place = argv.index("--settings") + 1
    main([*argv[:place], "mine=config:mart", *argv[place:]])
    with pytest.raises(SystemExit):
        main([*argv[:place], "mine=config:trades", *argv[place:]])
    told = capsys.readouterr().err
    assert "objective 'mart' there, 'trades' now" in told
