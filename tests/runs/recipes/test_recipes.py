from pathlib import Path

import pytest

import hf_robust_ft
from hf_robust_ft import AdversarialTrainingArguments
from hf_robust_ft.runs.fine_tune import DataArguments, ModelArguments
from hf_robust_ft.runs.recipes import build_parser, compose_recipes, parse_recipe, read_recipe, shipped_recipes

TYPES = (ModelArguments, DataArguments, AdversarialTrainingArguments)
RECIPES = sorted((Path(hf_robust_ft.__file__).parent / "recipes").glob("*.yaml"))
NEEDED = {"model": "someone/x", "dataset": "y"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_parses(path, tmp_path):
    overrides = {**{key: value for key, value in NEEDED.items() if key not in read_recipe(path)}}
    _, _, args = parse_recipe(TYPES, path, {**overrides, "output_dir": str(tmp_path)})
    assert args.remove_unused_columns is False and isinstance(args.learning_rate, float)


def test_the_papers_protocol(tmp_path):
    _, _, args = parse_recipe(TYPES, "paper_default", {**NEEDED, "output_dir": str(tmp_path)})
    assert (args.num_train_epochs, args.attack_steps, args.eval_attack_steps) == (50, 7, 10)
    assert (args.schedule_start * 50, args.schedule_end * 50) == (12, 37)
    assert args.threat_model.eps == 4 / 255


def test_flags_override_the_recipe_and_types_are_argparses(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "model: someone/a\ndataset: b\neps: 8/255\nlearning_rate: 1e-4\nbf16: false\nnum_train_epochs: 5\n"
        "eval_epsilons: [0, 4/255, 8/255]\n"
    )
    parser = build_parser(TYPES, read_recipe(path))
    flags = ["--eps", "4/255", "--eval_epsilons", "0", "4/255", "--output_dir", str(tmp_path)]
    model, data, args = parser.parse_args_into_dataclasses(flags, look_for_args_file=False)
    assert (model.model, data.dataset, args.eps) == ("someone/a", "b", "4/255")
    assert args.learning_rate == 1e-4 and args.bf16 is False and args.eval_epsilons == ["0", "4/255"]
    _, _, args = build_parser(TYPES, {**read_recipe(path), "output_dir": str(tmp_path)}).parse_args_into_dataclasses(
        [], look_for_args_file=False
    )
    assert args.evaluation_grid == [0, 4 / 255, 8 / 255]


def test_unknown_keys_are_errors_that_name_the_nearest():
    with pytest.raises(ValueError, match=r"Unknown recipe key 'eps_shedule'\. Did you mean eps_schedule"):
        build_parser(TYPES, {"eps_shedule": "hinge"})


def test_yaml_numbers_are_typed_and_checked_as_flags_are(tmp_path):
    with pytest.raises(ValueError, match=r"--seed: invalid int value: '1.5'"):
        parse_recipe(TYPES, "quickstart", {"seed": 1.5, "output_dir": str(tmp_path)})
    overrides = {"eps": "4/255", "eval_epsilons": None, "output_dir": str(tmp_path)}
    assert len(parse_recipe(TYPES, "quickstart", overrides)[2].evaluation_grid) == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [("- a\n- b\n", "must map argument names"), ("eps: [", "is not valid YAML"), ("", "must map argument names")],
)
def test_files_that_are_no_recipe_are_refused(tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_recipe(path)


def test_a_recipe_that_is_not_there_lists_the_shipped():
    listed = "mart, notebook, notebook_hub, paper_default, pmg_aft, quickstart, roli, segmentation, trades"
    with pytest.raises(ValueError, match=listed):
        read_recipe("papre_default")


def test_later_recipes_override_earlier_ones(tmp_path):
    (tmp_path / "mine.yaml").write_text("num_train_epochs: 3\n")
    composed = compose_recipes(["paper_default", "linear_probe", tmp_path / "mine.yaml"])
    base = read_recipe("paper_default")
    changed = {key for key in composed if composed[key] != base.get(key)}
    assert changed == {"num_train_epochs", "freeze", "learning_rate", "head_learning_rate"}
    assert compose_recipes([]) == {}


WHOLE_RUNS = ("paper_default", "quickstart", "notebook", "notebook_hub", "segmentation", "detection")
OVERLAYS = {
    "autolora": {"autolora": True, "autolora_rate": "authors", "lr_scheduler_type": "constant", "robust_eval": "epoch"},
    "best_expected": {"eps_schedule": "linear_warmup"},
    "efficientnet_lite": {"learning_rate": 2e-3, "head_learning_rate": None},
    "fast": {"eps_schedule": "linear_warmup", "attack_guard": 0.3},
    "linear_probe": {"freeze": "backbone"},
    "lora": {"lora_rank": 16},
    "mart": {"objective": "mart", "objective_beta": 5.0, "attack_loss": "ce"},
    "pmg_aft": {"objective": "pmg_aft", "objective_alpha": 1.0, "objective_beta": 1.0, "optim": "sgd"},
    "fare": {"objective": "fare", "attack_loss": "features", "eps_schedule": "constant", "head_learning_rate": None},
    "roli": {"probe_epochs": 60, "eps_schedule": "hinge"},
    "trades": {"objective": "trades", "objective_beta": 6.0, "attack_loss": "kl", "attack_random_start": True},
    "twins_at": {"twins_lambda": 0.4, "batch_norm": "trainer", "objective": "at", "optim": "sgd"},
    "twins_trades": {"twins_lambda": 0.4, "objective": "trades", "objective_beta": 3.0, "attack_loss": "ce"},
}


@pytest.mark.parametrize("overlay", [name for name in shipped_recipes() if name not in WHOLE_RUNS])
def test_shipped_overlays_go_with_the_papers_protocol(overlay, tmp_path):
    recipe = {**compose_recipes(["paper_default", overlay]), **NEEDED, "output_dir": str(tmp_path)}
    _, _, args = build_parser(TYPES, recipe).parse_args_into_dataclasses([], look_for_args_file=False)
    assert OVERLAYS[overlay].items() <= vars(args).items()


def test_of_two_methods_the_later_holds_and_is_whole(tmp_path):
    composed = compose_recipes(["paper_default", "trades", "best_expected", "mart"])
    recipe = {**composed, **NEEDED, "output_dir": str(tmp_path)}
    _, _, args = build_parser(TYPES, recipe).parse_args_into_dataclasses([], look_for_args_file=False)
    assert (OVERLAYS["mart"] | OVERLAYS["best_expected"]).items() <= vars(args).items()


def test_a_flag_can_unset_a_number_of_a_recipe(tmp_path):
    parser = build_parser(TYPES, {**read_recipe("paper_default"), **NEEDED, "output_dir": str(tmp_path)})
    _, _, args = parser.parse_args_into_dataclasses(["--head_learning_rate", "none"], look_for_args_file=False)
    assert args.head_learning_rate is None
    assert parser.parse_args_into_dataclasses([], look_for_args_file=False)[2].head_learning_rate == 4e-3
    for flags in (["--num_train_epochs", "none"], ["--head_learning_rate", "fast"]):
        with pytest.raises(ValueError, match=f"invalid float value: '{flags[1]}'"):
            parser.parse_args_into_dataclasses(flags, look_for_args_file=False)


def test_schedule_arguments_of_a_recipe_are_words_or_a_mapping_and_a_flag_replaces_them(tmp_path):
    for given in ({"bend": 0.5, "power": 2}, ["bend=0.5", "power=2"]):
        recipe = {**NEEDED, "output_dir": str(tmp_path), "eps_schedule": "smoothed_hinge", "schedule_args": given}
        parser = build_parser(TYPES, recipe)
        _, _, args = parser.parse_args_into_dataclasses([], look_for_args_file=False)
        assert args.schedule_args == {"bend": 0.5, "power": 2}
        flags = ["--eps_schedule", "constant", "--schedule_args", "none"]
        assert parser.parse_args_into_dataclasses(flags, look_for_args_file=False)[2].schedule_args is None
