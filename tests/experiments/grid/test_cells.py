"""Cells and what they are told."""

import json
import pickle

import pytest
from grid_results import make_result

from hf_robust_ft.experiments.grid.arguments import GRIDS, GridArguments, read_grid, shipped_grids
from hf_robust_ft.experiments.grid.cells import Cell, Job
from hf_robust_ft.experiments.grid.reproducing import parse_grid
from hf_robust_ft.experiments.grid.results import MeasuredCell
from hf_robust_ft.experiments.grid.run_cell import CONFIGURATION, refuse_changes


def test_jobs_cross_everything_once(make_options, flags):
    options = make_options(epsilons=["4/255", "8/255"], settings=["standard", "hinge:12,30", "hinge"], seeds=[0, 1])
    jobs = options.grid(flags).jobs()
    assert len(jobs) == 12 and len({job.cell.name for job in jobs}) == 12
    assert {job.cell.model for job in jobs} == {"tinyvit"}  # no folder of this machine in a name
    seeded = next(job for job in jobs if job.cell.setting == "hinge:12,30" and job.cell.seed == 1).parse()
    assert (seeded.training.seed, seeded.training.schedule_end) == (1, 0.6)
    grid = next(job for job in jobs if job.cell.eps == "8/255").parse().training.evaluation_grid
    assert grid == pytest.approx([0, 4 / 255, 8 / 255])


def test_the_papers_grid_of_eps_is_the_default(make_options, flags):
    job = make_options(eval_points=None).grid(flags).jobs()[0]
    assert job.parse().training.evaluation_grid == pytest.approx([k / 255 for k in range(17)])


def test_a_job_travels_as_plain_values(make_options, flags):
    job = make_options().grid(flags).jobs()[1]
    assert Job.from_dict(json.loads(json.dumps(job.to_dict()))) == job
    assert pickle.loads(pickle.dumps(job.to_dict())) == job.to_dict()


def test_recipes_of_some_cells_lie_below_the_flags(make_options, flags, tmp_path):
    found = tmp_path / "found.yaml"
    found.write_text("weight_decay: 0.25\nlearning_rate: 0.5\n")
    (job, *_) = make_options(recipes=[f"tinyvit/*={found}"]).grid(flags).jobs()
    training = job.parse().training
    assert (training.weight_decay, training.learning_rate) == (0.25, 1e-3)
    with pytest.raises(ValueError, match="No cell of the grid takes the recipe"):
        make_options(recipes=[f"swin/*={found}"]).grid(flags).jobs()
    with pytest.raises(ValueError, match="is not MODEL/DATASET=RECIPE"):
        make_options(recipes=["swin=found.yaml"]).grid(flags).jobs()


def test_what_every_cell_needs_wins_over_settings(make_options, flags):
    (job,) = make_options(settings=["mine=save_strategy:no;eval_strategy:no;robust_eval:end"]).grid(flags).jobs()
    training = job.parse().training
    assert (training.save_strategy, training.eval_strategy, training.robust_eval) == ("epoch", "epoch", "no")


def test_a_grid_that_is_not_there_is_told_with_the_one_most_like_it():
    with pytest.raises(ValueError, match=r"There is no grid 'method'\. Did you mean methods\? Give a YAML file, or"):
        read_grid("method")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--max_grad_norm", "0.5"], r"max_grad_norm 1\.0 there, 0\.5 now"),
        (
            ["--eval_attack_steps", "auto", "--eval_attack_steps_limit", "40"],
            "eval_attack_steps_limit .* there, 40 now",
        ),
        (["--config", "quickstart", "--config", "fast", "--attack_steps", "7"], r"attack_guard None there, 0\.3 now"),
        (["--label_column", "kind"], "label_column None there, 'kind' now"),
    ],
)
def test_nothing_that_the_figures_depend_on_changes_unnoticed(make_options, flags, more, told):
    (job,) = make_options(settings=["fix"]).grid(flags).jobs()
    (other,) = make_options(settings=["fix"]).grid([*flags, *more]).jobs()
    job.work.mkdir(parents=True)
    (job.work / CONFIGURATION).write_text(json.dumps(job.configuration(job.parse())))
    refuse_changes(job, job.configuration(job.parse()))
    with pytest.raises(ValueError, match=told):
        refuse_changes(other, other.configuration(other.parse()))


def test_settings_win_over_flags(make_options, flags):
    (job,) = make_options(settings=["few=attack_steps:3"]).grid(flags).jobs()
    assert job.parse().training.attack_steps == 3


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        ({"models": []}, [], "A grid needs --models"),
        ({"seeds": [0, 0]}, [], "Two cells of the grid are called"),
        ({"settings": ["sched", "hinge"]}, [], "sched.seed0 and .*hinge.seed0 are the same cell"),
        ({"settings": ["fix", "constant"]}, [], "are the same cell"),
        ({"settings": ["hinge:12,37", "hinge:12.0,37"]}, [], "are the same cell"),
        ({"epsilons": ["4/255", "8/510"]}, [], "are the same cell"),
        ({"epsilons": ["0"]}, [], "a grid measures up to budgets above 0"),
        ({"seeds": [-1]}, [], "A seed is a whole number from 0"),
        ({}, ["--eps", "4/255"], "--eps is one for each cell of a grid: give --epsilons"),
        ({}, ["--schedule=hinge"], "give --settings"),
        ({}, ["--push_to_hub"], "the grid itself evaluates, saves and resumes"),
        ({}, ["--load_best_model_at_end"], "--load_best_model_at_end: the grid itself evaluates, saves and resumes"),
        ({"settings": ["mine=force_resume:true"]}, [], "sets force_resume, which the grid does"),
        ({"runner": "slurm"}, [], "Unknown runner 'slurm'"),
        ({"eval_points": 0}, [], "eval_points must be at least 1"),
    ],
)
def test_bad_grids_are_refused(make_options, flags, changes, more, message):
    with pytest.raises(ValueError, match=message):
        make_options(**changes).grid([*flags, *more]).jobs()


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        ({"epsilons": ["4"]}, [], "Did you mean eps='4/255'"),
        ({}, ["--learning_rat", "1"], "Unknown option --learning_rat. Did you mean --learning_rate"),
        ({"eval_split": "train"}, [], "Unknown split 'train'"),
        ({"protocol": "papers"}, [], "Unknown protocol"),
        ({"settings": ["mine=attack_step:3"]}, [], "Unknown option --attack_step"),
    ],
)
def test_bad_options_name_the_cell(make_options, flags, changes, more, message):
    with pytest.raises(ValueError, match=message):
        [job.parse() for job in make_options(**changes).grid([*flags, *more]).jobs()]


def test_seeds_of_a_grid_file_are_numbers_as_those_of_flags(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("models: [efficientnet_lite0]\ndatasets: [digits]\nseeds: [0, 10, 2]\n")
    assert parse_grid(["--grid", str(file)], "")[0].seeds == [0, 10, 2]
    assert parse_grid(["--grid", str(file), "--seeds", "3"], "")[0].seeds == [3]
    file.write_text("seeds: [0, a]\n")
    with pytest.raises(ValueError, match="--seeds: invalid int value"):
        parse_grid(["--grid", str(file)], "")


@pytest.mark.parametrize("name", shipped_grids())
def test_shipped_grids_parse(name):
    ours, flags = read_grid(name)
    ours.setdefault("datasets", ["digits"])
    jobs = GridArguments(**ours).grid(flags).jobs()
    assert len(jobs) == len({job.cell.name for job in jobs})
    for job in jobs[: len(GridArguments(**ours).settings)]:
        job.parse()


def test_the_papers_tables_are_whole():
    assert sorted(file.stem for file in GRIDS.glob("table*.yaml")) == ["table1_2", "table7", "table8"]
    counts = {
        name: len(GridArguments(**read_grid(name)[0]).grid([]).jobs()) for name in ("table1_2", "table7", "table8")
    }
    assert counts == {"table1_2": 120, "table7": 30, "table8": 18}


def test_a_measured_cell_is_the_cell_and_its_file_holds_their_fields_side_by_side(tmp_path):
    result = make_result(setting="hinge", seed=3)
    cell = Cell("efficientnet_lite0", "digits", "Linf", "4/255", "hinge", 3)
    assert isinstance(result, Cell) and result.name == cell.name
    result.to_json(tmp_path / "cell.json")
    content = json.loads((tmp_path / "cell.json").read_text())
    assert {"model", "dataset", "norm", "eps", "setting", "seed", "report", "configuration"} <= set(content)
    assert MeasuredCell.from_json(tmp_path / "cell.json") == result
