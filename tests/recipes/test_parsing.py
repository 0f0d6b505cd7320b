from pathlib import Path

import pytest

import hf_robust_ft
from hf_robust_ft import AdversarialTrainingArguments
from hf_robust_ft.finetuning import DataArguments, ModelArguments
from hf_robust_ft.recipes import build_parser, parse_recipe, read_recipe

TYPES = (ModelArguments, DataArguments, AdversarialTrainingArguments)
RECIPES = sorted((Path(hf_robust_ft.__file__).parent / "recipes").glob("*.yaml"))
NEEDED = {"model": "x", "dataset": "y"}


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
        "model: a\ndataset: b\neps: 8/255\nlearning_rate: 1e-4\nbf16: false\nnum_train_epochs: 5\n"
        "eval_epsilons: [0, 4/255, 8/255]\n"
    )
    parser = build_parser(TYPES, read_recipe(path))
    flags = ["--eps", "4/255", "--eval_epsilons", "0", "4/255", "--output_dir", str(tmp_path)]
    model, data, args = parser.parse_args_into_dataclasses(flags, look_for_args_file=False)
    assert (model.model, data.dataset, args.eps) == ("a", "b", "4/255")
    assert args.learning_rate == 1e-4 and args.bf16 is False and args.eval_epsilons == ["0", "4/255"]
    _, _, args = build_parser(TYPES, {**read_recipe(path), "output_dir": str(tmp_path)}).parse_args_into_dataclasses(
        [], look_for_args_file=False
    )
    assert args.evaluation_grid == [0, 4 / 255, 8 / 255]


def test_unknown_keys_are_errors_that_name_the_nearest():
    with pytest.raises(ValueError, match=r"Unknown recipe key 'eps_shedule'\. Did you mean eps_schedule"):
        build_parser(TYPES, {"eps_shedule": "hinge"})


def test_yaml_numbers_are_typed_and_checked_as_flags_are(tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse_recipe(TYPES, "quickstart", {"seed": 1.5, "output_dir": str(tmp_path)})
    assert "invalid int value: '1.5'" in capsys.readouterr().err
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
    with pytest.raises(ValueError, match="paper_default, quickstart"):
        read_recipe("papre_default")
