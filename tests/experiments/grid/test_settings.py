"""Settings stand for options of `train`."""

import pytest

from hf_robust_ft.experiments.grid.settings import setting_name, setting_options
from hf_robust_ft.runs.recipes import read_recipe
from hf_robust_ft.schedules import SCHEDULES, build_schedule


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "beta"])
def test_every_schedule_is_a_setting(name):
    assert setting_options(name)["eps_schedule"] == name


def test_standard_never_attacks():
    schedule = build_schedule(setting_options("standard")["eps_schedule"])
    assert [schedule(k / 10) for k in range(11)] == [0.0] * 11


def test_corners_are_epochs_of_fifty():
    assert setting_options("hinge:0,0") == {"eps_schedule": "hinge", "schedule_start": 0, "schedule_end": 0}
    assert setting_options("hinge:12,30")["schedule_end"] == 0.6


def test_arguments_recipes_and_options(tmp_path):
    assert setting_options("auto:patience=2,tolerance=0.1")["schedule_args"] == ["patience=2", "tolerance=0.1"]
    points = "points=0.24:0,0.5:0.3,0.74:1"
    assert setting_options(f"piecewise_linear:{points}")["schedule_args"] == [points]
    recipe = tmp_path / "short.yaml"
    recipe.write_text("attack_steps: 3\nschedule_end: 0.6\n")
    assert setting_name(str(recipe)) == "short"
    assert setting_options(str(recipe)) == {"attack_steps": 3, "schedule_end": 0.6}
    inline = "short=attack_steps:3;schedule_args:bend=0.3"
    assert setting_name(inline) == "short" and setting_name("auto:patience=2") == "auto:patience=2"
    assert setting_options(inline) == {"attack_steps": "3", "schedule_args": ["bend=0.3"]}


def test_options_may_begin_with_a_recipes(tmp_path):
    found = setting_options("mine=config:trades;objective_beta:1;eps_schedule:hinge")
    assert found == read_recipe("trades") | {"objective_beta": "1", "eps_schedule": "hinge"}
    recipe = tmp_path / "short.yaml"
    recipe.write_text("attack_steps: 3\n")
    assert setting_options(f"both=config:mart;config:{recipe}") == read_recipe("mart") | {"attack_steps": 3}
    with pytest.raises(ValueError, match=r"There is no recipe 'trade'.*Did you mean trades"):
        setting_options("mine=config:trade")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("hing", "Did you mean hinge"),
        ("hinge:12", "is not hinge:T1,T2"),
        ("hinge:a,b", "is not hinge:T1,T2"),
        ("hinge:37,12", "0 <= T1 <= T2 <= 50"),
        ("hinge:12,60", "0 <= T1 <= T2 <= 50"),
        ("mine=attack_steps:3;attack_steps:4", "says attack_steps twice"),
        ("mine=attack_steps:3;seed:4", "sets seed, which the grid does"),
        ("mine=attack_steps:3;seed", "'seed' in the setting"),
        ("missing.yaml", "Unknown setting"),
    ],
)
def test_bad_settings_name_the_cure(setting, message):
    with pytest.raises(ValueError, match=message):
        setting_options(setting)
