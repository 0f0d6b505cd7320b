"""A grid of runs, each once, and the tables made of them; what `hf-robust-ft reproduce` does."""

import argparse
import json
import os
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from hf_robust_ft.attacks.losses import measuring_loss
from hf_robust_ft.evaluation.convergence import STEPS_LIMIT
from hf_robust_ft.evaluation.segmentation.protocols import SEGMENTATION_PROTOCOLS
from hf_robust_ft.experiments.grid.arguments import SET_BY_GRID, GridArguments, read_grid, shipped_grids
from hf_robust_ft.experiments.grid.cells import CellArguments, Grid, Job
from hf_robust_ft.experiments.grid.planning import GridPlan, plan_grid
from hf_robust_ft.experiments.grid.results import MeasuredCell
from hf_robust_ft.experiments.grid.run_cell import refuse_changes
from hf_robust_ft.experiments.grid.runners import RUN
from hf_robust_ft.experiments.planning import PlanArguments
from hf_robust_ft.provenance.affects import MEASUREMENT, arguments
from hf_robust_ft.provenance.choices import check_choice
from hf_robust_ft.reporting.measures import ACCURACY
from hf_robust_ft.runs.arguments import DataArguments
from hf_robust_ft.runs.command_parser import wants_all
from hf_robust_ft.runs.option_help import ESSENTIALS
from hf_robust_ft.runs.options import BASE_RECIPE
from hf_robust_ft.runs.recipes import build_parser
from hf_robust_ft.runs.task_arguments import SEGMENTATION
from hf_robust_ft.training.arguments import AdversarialTrainingArguments

# What is measured depends on these, which the grid does not set: the same in all cells, or in all of a dataset.
ATTACK_OPTIONS, IMAGE_OPTIONS = (
    [
        each.name
        for each in arguments(kind)
        if each.is_ours and MEASUREMENT in each.affects and each.name not in SET_BY_GRID
    ]
    for kind in (AdversarialTrainingArguments, DataArguments)
)


def parse_grid(argv: Sequence[str], description: str) -> tuple[GridArguments, PlanArguments, list[str]]:
    """The grid's options, a dry run's, and the options of `train` that are left for every cell.

    Raises:
        ValueError: no such grid, or what the dataclasses refuse.
    """
    named = {"prog": "hf-robust-ft reproduce", "usage": "hf-robust-ft reproduce [--grid GRID] [options]"}
    before = argparse.ArgumentParser(add_help=False, allow_abbrev=False, **named)
    before.add_argument(
        "--grid", help=f"A YAML file of these options and train's, or one of {', '.join(shipped_grids())}."
    )
    known, rest = before.parse_known_args(argv)
    ours, flags = read_grid(known.grid) if known.grid else ({}, [])
    parser = build_parser(
        (GridArguments, PlanArguments),
        ours,
        **named,
        description=description,
        epilog=f"All options of train (hf-robust-ft train --help) hold for every cell (config: {BASE_RECIPE}).",
    )
    parser.add_argument(  # taken out before: for --help alone
        "--grid",
        default=argparse.SUPPRESS,
        help=f"A YAML file of these options and train's, or one of {', '.join(shipped_grids())}.",
    )
    if not wants_all(argv):
        parser.show_only(ESSENTIALS["reproduce"])
    options, plan_args, train_options = parser.parse_args_into_dataclasses(
        rest, look_for_args_file=False, return_remaining_strings=True
    )
    return options, plan_args, [*flags, *train_options]


def reproduce(
    options: GridArguments, plan_args: PlanArguments, train_options: Sequence[str]
) -> dict[str, str] | GridPlan:
    """Run the cells that are not finished, and write tables and pictures of all that are.

    All cells' options are parsed, and compared with what earlier runs left in the folder, before the first one runs.

    Args:
        train_options: options of `train` for all cells.

    Returns:
        Why cells have no result, by their names; in a dry run, the plan.

    Raises:
        ValueError: bad options, a folder with cells of another configuration, or several processes started together.
        ImportError: the runner's library is missing.
    """
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started > 1:
        raise ValueError(
            f"reproduce itself is one process, and a launcher started {started}. Leave the launcher out, and name it "
            "in --launcher with --runner launch: each cell is then started by it."
        )
    grid = options.grid(train_options)
    every = grid.jobs()
    jobs = [job for job in every if not options.only or any(fnmatch(job.cell.name, each) for each in options.only)]
    if not jobs:
        raise ValueError(f"No cell matches --only {' '.join(options.only)}. The first one is {every[0].cell.name}.")
    runs = not plan_args.dry_run and options.runner != "none"
    parsed = [job.parse(runs) for job in jobs]
    configurations = [job.configuration(arguments) for job, arguments in zip(jobs, parsed, strict=True)]
    _check_protocol(jobs, parsed)
    _check_measured_alike(jobs, configurations)
    for job, configuration in zip(jobs, configurations, strict=True):
        refuse_changes(job, configuration)
    for job in every:  # what stands in the same tables
        if job not in jobs and job.result.is_file():
            refuse_changes(job, job.configuration(job.parse(runs)))
    if any(word.partition("=")[0].replace("-", "_") == "__attack_steps" for word in train_options):
        print(_told_steps(parsed[0].training, options.protocol), flush=True)
    chosen = _numbered(jobs, options.cell)
    if plan_args.dry_run:
        plan = plan_grid(chosen, parsed if options.cell is None else [parsed[options.cell]], plan_args)
        print(f"{plan}\nCells: {len(jobs)}, --cell 0 to {len(jobs) - 1}.", flush=True)
        if plan_args.plan_json:
            plan.to_json(plan_args.plan_json)
        return plan
    missing = _run(chosen, options)
    if options.cell is None:  # tasks of a job array would write the same tables at once
        _write(grid, every)
    return missing


def _numbered(jobs: Sequence[Job], number: int | None) -> Sequence[Job]:
    """The job of that number alone, of those that `--only` leaves; all without one.

    Raises:
        ValueError: there are fewer.
    """
    if number is None:
        return jobs
    if number >= len(jobs):
        raise ValueError(f"There is no cell {number}: these are {len(jobs)}, --cell 0 to {len(jobs) - 1}.")
    return [jobs[number]]


def _told_steps(args: AdversarialTrainingArguments, protocol: str) -> str:
    """What `--attack_steps` is of, which `evaluate` has by the same name for another attack."""
    return (
        f"--attack_steps {args.attack_steps} is of the training attack. Cells are measured by protocol {protocol}, its "
        f"steps --eval_attack_steps: {args.eval_attack_steps}."
    )


def _check_protocol(jobs: Sequence[Job], parsed: Sequence[CellArguments]) -> None:
    """Raise a ValueError for a task or a protocol of masks that grids do not know, before anything is trained."""
    kinds = {(each.model.model, each.data.dataset): each for each in parsed}
    for (model, dataset), each in kinds.items():
        each.data.refuse_other_tasks("reproduce", model, dataset, SEGMENTATION)
        if each.data.settle_task(model, dataset, each.model.model_revision) == SEGMENTATION:
            protocol, limit = jobs[0].measurement.protocol, each.training.eval_attack_steps_limit
            check_choice("protocol", protocol, SEGMENTATION_PROTOCOLS, "protocols")
            if protocol != "paper" and limit != STEPS_LIMIT:
                raise ValueError(
                    f"eval_attack_steps_limit={limit} does nothing under protocol={protocol!r} of masks, whose attacks "
                    "have steps of their own: leave it out."
                )


def _check_measured_alike(jobs: Sequence[Job], configurations: Sequence[dict[str, Any]]) -> None:
    """Refuse settings and recipes of some cells that change what is measured: tables would refuse it afterwards."""
    first: dict[tuple[str, str | None], tuple[str, Any]] = {}
    for job, configuration in zip(jobs, configurations, strict=True):
        for name in (*ATTACK_OPTIONS, *IMAGE_OPTIONS):
            value = configuration.get(name)
            if name == "attack_loss":  # some are training's alone
                value = measuring_loss(value)
            place = (name, job.cell.dataset if name in IMAGE_OPTIONS else None)
            other, seen = first.setdefault(place, (job.cell.name, value))
            if seen != value:
                raise ValueError(
                    f"{other} and {job.cell.name} would not be measured alike: {name} {seen!r} and {value!r}. Give it "
                    "to all cells, or make it a grid with another --output_dir."
                )


def _run(jobs: Sequence[Job], options: GridArguments) -> dict[str, str]:
    """Run what is left to run; why cells have no result."""
    left = [job for job in jobs if not job.result.is_file()]
    print(f"{len(jobs)} cells, {len(jobs) - len(left)} of them done before -> {options.output_dir}", flush=True)
    missing: dict[str, str] = {}
    for number, outcome in enumerate(RUN[options.runner](left, options), start=1):
        name = outcome.job.cell.name
        if outcome.result is None:
            missing[name] = outcome.reason
        print(f"=== {number}/{len(left)} {name}: {_line(outcome.result, missing.get(name))}", flush=True)
    return missing


def _line(result: MeasuredCell | None, reason: str | None) -> str:
    if result is None:
        return f"no result: {reason}"
    scores, what = result.scores, "" if result.measure is ACCURACY else f"{result.measure.name} "
    return (
        f"{what}clean {scores.clean:.1%}, adversarial {scores.adversarial:.1%}, expected {scores.expected:.1%} "
        f"({sum(result.seconds.values()):.0f} s)"
    )


def _write(grid: Grid, every: Sequence[Job]) -> None:
    """Tables and pictures of all cells of the grid that finished or failed, this time's and earlier ones'."""
    from hf_robust_ft.experiments.grid.tables import write_tables  # matplotlib: only now

    finished = [MeasuredCell.from_json(job.result) for job in every if job.result.is_file()]
    failed = {job.cell.name: job.failure_reason for job in every if job.failure.is_file() and not job.result.is_file()}
    folder = Path(grid.folder)
    (folder / "grid.json").write_text(json.dumps(_without_paths(grid), indent=1) + "\n", encoding="utf-8")
    if finished:
        print(f"\n{write_tables(finished, folder, failed)}\n\nTables and pictures: {folder}", flush=True)


def _without_paths(grid: Grid) -> dict:
    """The grid, folders of this machine by their names."""
    content = grid._asdict() | {"measurement": grid.measurement._asdict()}
    del content["folder"]
    for name in ("models", "datasets", "settings"):
        content[name] = [
            Path(each).name if os.path.isfile(each) or os.path.isdir(each) else each for each in content[name]
        ]
    return content
