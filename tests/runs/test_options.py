import argparse

import pytest

from hf_robust_ft.experiments.planning import PlanArguments
from hf_robust_ft.experiments.search import SearchArguments
from hf_robust_ft.runs.evaluation_arguments import EvaluationArguments
from hf_robust_ft.runs.fine_tune import DataArguments, ModelArguments
from hf_robust_ft.runs.options import default_output_dir, filled_in, parse_options
from hf_robust_ft.training.arguments import AdversarialTrainingArguments

TYPES = (ModelArguments, DataArguments, AdversarialTrainingArguments, PlanArguments)


@pytest.fixture
def parse(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def parse(*flags, base="paper_default"):
        argv = ["--model", "swin", "--dataset", "cub200", *flags]
        return parse_options("train", argv, TYPES, ("model", "data", "training", "dry run"), "Train.", base)

    return parse


def test_two_names_are_enough_for_the_papers_protocol(parse):
    options = parse("--eps", "8/255", "--schedule", "linear_warmup")
    model, data, args, plan = options.parsed
    assert (model.model, data.dataset, args.eps, args.eps_schedule) == ("swin", "cub200", "8/255", "linear_warmup")
    assert (args.num_train_epochs, args.learning_rate, args.head_learning_rate) == (50, 1.2e-4, 4e-3)
    assert args.output_dir == "runs/swin-cub200-Linf-8_255-linear_warmup-seed42" and not plan.dry_run
    assert options.recipes == ["paper_default"]
    assert "eps" not in options.from_recipes and "eps_schedule" not in options.from_recipes
    assert options.from_recipes["schedule_start"] == 0.24


@pytest.mark.parametrize("named", [["--model", "efficientnet_lite1"], ["--model=efficientnet_lite1"]])
def test_an_embedded_backbone_brings_its_own_rate_unless_a_config_is_given(parse, named):
    options = parse(*named)
    assert options.recipes == ["paper_default", "efficientnet_lite"]
    args = options.parsed[2]
    assert (args.learning_rate, args.head_learning_rate, args.per_device_train_batch_size) == (2e-3, None, 32)
    assert (args.num_train_epochs, args.schedule_end, args.eps) == (50, 0.74, "4/255")
    assert parse(*named, "--learning_rate", "1e-3").parsed[2].learning_rate == 1e-3
    plain = parse(*named, "--config", "paper_default")
    assert plain.recipes == ["paper_default"] and plain.parsed[2].learning_rate == 1.2e-4


def test_a_config_takes_the_place_of_the_base(parse, tmp_path):
    (tmp_path / "mine.yaml").write_text("num_train_epochs: 2\noutput_dir: here\n")
    options = parse("--config", "mine.yaml")
    assert options.parsed[2].learning_rate == 5e-5 and options.parsed[2].output_dir == "here"
    assert options.recipes == ["mine"] and options.from_recipes == {"num_train_epochs": 2, "output_dir": "here"}
    both = parse("--config", "paper_default", "--config=mine.yaml", "--num-train-epochs", "3")
    assert both.parsed[2].learning_rate == 1.2e-4 and both.parsed[2].num_train_epochs == 3
    assert both.recipes == ["paper_default", "mine"] and "num_train_epochs" not in both.from_recipes


@pytest.mark.parametrize("recipe", ["trades", "mart", "best_expected"])
@pytest.mark.parametrize("model", ["swin", "efficientnet_lite0"])
def test_a_shipped_recipe_that_only_adds_comes_over_the_base(parse, recipe, model):
    without, alone = parse("--model", model), parse("--model", model, "--config", recipe)
    assert alone.recipes == [*without.recipes, recipe]
    for name in ("learning_rate", "per_device_train_batch_size", "num_train_epochs", "weight_decay"):
        assert getattr(alone.parsed[2], name) == getattr(without.parsed[2], name), name


def test_a_whole_runs_recipe_and_a_file_have_no_base_below(parse, tmp_path):
    (tmp_path / "trades").write_text("objective: trades\n")
    for named in (["quickstart", "mart"], ["trades"], ["paper_default", "mart"]):
        flags = [word for name in named for word in ("--config", name)]
        assert parse(*flags).recipes == named


@pytest.mark.parametrize("flag", ["--learning_rate", "--learning-rate", "--learning_rate=3e-4"])
def test_a_flag_is_one_however_it_is_written(parse, flag):
    options = parse(*([flag] if "=" in flag else [flag, "3e-4"]))
    assert options.parsed[2].learning_rate == 3e-4 and "learning_rate" not in options.from_recipes


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--eps_shedule", "hinge"], "Unknown option --eps_shedule. Did you mean --eps_schedule"),
        (["--epochs", "5"], "Unknown option --epochs. Did you mean --num_train_epochs"),
        (["--batch-size", "8"], "Did you mean --per_device_train_batch_size"),
        (["--lr", "1e-3"], "Unknown option --lr. Did you mean --learning_rate"),
        (["--learning-rat", "1"], "Did you mean --learning_rate"),
        (["--schedule", "hing"], "Unknown eps schedule 'hing'. Did you mean hinge? Valid schedules: none, constant,"),
        (["--eps_schedule", "fix"], "Unknown eps schedule 'fix'. Did you mean constant?"),
        (["--xyzzy"], "Unknown option --xyzzy."),
        (["hinge"], "Unknown option hinge."),
        (["--config", "nowhere"], "There is no recipe 'nowhere'"),
        (["--schedule", "hinge", "--eps_schedule", "constant"], "are the same option: give one of them"),
    ],
)
def test_what_cannot_be_understood_is_named(parse, flags, message):
    with pytest.raises(ValueError) as error:
        parse(*flags)
    assert message in str(error.value)


def test_a_misspelt_option_is_named_before_one_that_is_missing():
    with pytest.raises(ValueError, match=r"^Unknown option --modle. Did you mean --model"):
        parse_options("evaluate", ["--modle", "swin"], (EvaluationArguments, DataArguments), ("e", "d"), "")


def test_a_dry_run_for_another_machine_may_plan_with_bf16(parse):
    args, plan = parse("--dry-run", "--bf16", "--gpu", "a100").parsed[2:]
    assert plan.dry_run and args.bf16 and args.use_cpu


@pytest.mark.parametrize("flags", [["--tf32"], ["--tf32", "true"], ["--config", "mine.yaml"]])
def test_a_dry_run_for_another_machine_may_plan_with_tf32(parse, tmp_path, flags):
    (tmp_path / "mine.yaml").write_text("tf32: true\n")
    options = parse("--dry-run", *flags)
    assert options.parsed[2].tf32 is True and options.parsed[2].use_cpu
    assert options.from_recipes.get("tf32") == (True if "--config" in flags else None)


def test_a_limit_with_a_default_can_be_lifted():
    types = (ModelArguments, DataArguments, AdversarialTrainingArguments, SearchArguments)
    argv = ["--model", "swin", "--dataset", "cub200", "--output_dir", "run", "--minutes"]
    for text, minutes in (("none", None), ("2", 2.0)):
        options = parse_options("search", [*argv, text], types, ("", "", "", ""), "Search.")
        assert options.parsed[3].minutes == minutes


def test_a_missing_value_is_told(parse):
    with pytest.raises(ValueError, match="--schedule: expected one argument"):
        parse("--schedule")


def test_what_was_filled_in_names_checkpoint_and_copy(parse):
    text = filled_in(parse(), "swin", "cub200")
    for part in (
        "From recipe paper_default: augmentation=paper, norm=Linf",
        "Model swin: timm/swin_base_patch4_window7_224.ms_in22k_ft_in1k.",
        "Dataset cub200: Donghyun99/CUB-200-2011, revision 0e344a8",
        "200 classes",
    ):
        assert part in text, part
    assert filled_in(parse(base=None), "someone/model", "digits") == ""


def test_folders_are_named_by_their_last_part(tmp_path):
    seen = argparse.Namespace(
        model=str(tmp_path), dataset="ethz/food101", norm="L2", eps="0.5", eps_schedule="constant", seed=1
    )
    assert default_output_dir(seen) == f"runs/{tmp_path.name}-ethz-food101-L2-0.5-constant-seed1"
    seen.model = "open_clip:ViT-B-32/laion2b"
    assert default_output_dir(seen).startswith("runs/open_clip-ViT-B-32-laion2b-ethz")
