"""What a grid is told: what is crossed with what, how it is measured, and what runs it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hf_robust_ft.experiments.grid.cells import CELL_OPTIONS, Grid, Measurement
from hf_robust_ft.experiments.grid.settings import DEFAULT_SETTINGS
from hf_robust_ft.provenance.affects import DeclaredArguments, launching
from hf_robust_ft.provenance.choices import alike, check_choice, did_you_mean
from hf_robust_ft.runs.options import BASE_RECIPE
from hf_robust_ft.runs.recipes import FOLDER, as_flags, read_recipe
from hf_robust_ft.training.arguments import AdversarialTrainingArguments

GRIDS = FOLDER / "grids"
RUNNERS = ("in_process", "launch", "ray", "none")


@dataclass
class GridArguments(DeclaredArguments):
    """Which cells, how each is measured, and what runs them; `"sets"` are the flags of `train` that one takes over.

    Raises:
        ValueError: on construction, for an unknown runner or counts below 1.
    """

    models: list[str] = field(
        default_factory=list,
        metadata={"help": "Backbones, as --model of train.", "sets": ("model",), "affects": "weights"},
    )
    datasets: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Datasets, as --dataset of train.",
            "sets": ("dataset",),
            "affects": ("weights", "measurement"),
        },
    )
    epsilons: list[str] = field(
        default_factory=lambda: ["4/255", "8/255"],
        metadata={
            "help": "Budgets, in pixel units of [0, 1].",
            "sets": ("eps",),
            "affects": ("weights", "measurement"),
        },
    )
    settings: list[str] = field(
        default_factory=lambda: list(DEFAULT_SETTINGS),
        metadata={
            "help": "How eps is scheduled: standard (no attack), fix, hinge (the paper's sched), another schedule, "
            "hinge:T1,T2 in epochs of 50, SCHEDULE:KEY=VALUE, a shipped recipe, a recipe file, or options of train as "
            "NAME=OPTION:VALUE;OPTION:VALUE.",
            "sets": ("eps_schedule", "schedule"),
            "affects": "weights",
        },
    )
    seeds: list[int] = field(
        default_factory=lambda: [0],
        metadata={"help": "One run of each kind per seed.", "sets": ("seed",), "affects": "weights"},
    )
    norm: str = field(
        default="Linf",
        metadata={"help": "Norm of the perturbation: Linf, L2, L1.", "affects": ("weights", "measurement")},
    )
    recipes: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Options for some cells: MODEL/DATASET=RECIPE (with * and ?), e.g. 'swin/*=found.yaml'.",
            "affects": "weights",
        },
    )
    protocol: str = field(
        default="paper",
        metadata={
            "help": "How each cell is measured: paper (comparable), exact (stronger, no quadrature error), "
            "reliable (the worst case of four attacks). Its steps are --eval_attack_steps; --attack_steps is of the "
            "training attack.",
            "sets": ("eval_protocol", "robust_eval"),
            "affects": "measurement",
        },
    )
    eval_split: str = field(
        default="test",
        metadata={
            "help": "Split that is measured: test, or validation while you still choose.",
            "affects": "measurement",
        },
    )
    eval_points: int | None = field(
        default=None,
        metadata={
            "help": "Equal steps of the grid of eps (default: every 1/255, the paper's).",
            "sets": ("eval_epsilons",),
            "affects": "measurement",
        },
    )
    trust_checks: bool = field(
        default=True,
        metadata={"help": "Check for each cell whether its numbers can be trusted.", "affects": "measurement"},
    )
    output_dir: str = field(
        default="runs/reproduce",
        metadata={"help": "Folder for cells, tables and pictures; finished cells stay done.", "affects": "launch"},
    )
    only: list[str] = field(
        default_factory=list,
        metadata={"help": "Run only the cells whose names match one of these (with * and ?).", "affects": "launch"},
    )
    cell: int | None = field(
        default=None,
        metadata={
            "help": "Run only the cell of this number, from 0, of those that --only leaves (--dry_run tells how many): "
            "a task of a job array. Tables are made by the same command with --runner none in its place.",
            "affects": "launch",
        },
    )
    keep_checkpoints: bool = field(
        default=False, metadata={"help": "Keep each trained model, in checkpoints/.", "affects": "launch"}
    )
    runner: str = field(
        default="in_process",
        metadata={
            "help": "What runs the cells: in_process (one after the other), launch (each by --launcher), ray (on a Ray "
            "cluster, as many at a time as fit), none (no cell: tables of those that are there).",
            "affects": "launch",
        },
    )
    launcher: str = field(
        default="torchrun --nproc_per_node 1",
        metadata={
            "help": "Command before '-m', e.g. 'torchrun --nproc_per_node 8' or 'accelerate launch'.",
            "affects": "launch",
        },
    )
    ray_address: str | None = field(
        default=None,
        metadata={
            "help": "Cluster to join: auto, host:port (default: RAY_ADDRESS, or a new local one).",
            "affects": "launch",
        },
    )
    ray_cpus: float = field(default=1.0, metadata={"help": "CPUs of a cell on a Ray cluster.", "affects": "launch"})
    ray_gpus: float = field(
        default=0.0, metadata={"help": "GPUs of a cell on a Ray cluster, 1 as a rule.", "affects": "launch"}
    )

    def __post_init__(self):
        self.output_dir = os.path.expanduser(self.output_dir)
        check_choice("runner", self.runner, RUNNERS)
        if self.eval_points is not None and self.eval_points < 1:
            raise ValueError(f"eval_points must be at least 1, got {self.eval_points}.")
        if self.cell is not None and self.cell < 0:
            raise ValueError(f"cell must be at least 0, the number of the first one; got {self.cell}.")
        if self.cell is not None and self.runner == "none":
            raise ValueError(f"--cell {self.cell} runs a cell, and --runner none runs none: leave one of them out.")
        if self.ray_cpus < 0 or self.ray_gpus < 0:
            raise ValueError(f"ray_cpus and ray_gpus are not negative, got {self.ray_cpus} and {self.ray_gpus}.")

    def grid(self, options: Sequence[str]) -> Grid:
        """The grid.

        Args:
            options: of `train`, for all cells.

        Raises:
            ValueError: nothing to cross, or an option that the grid sets itself.
        """
        for name in ("models", "datasets", "epsilons", "settings", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"A grid needs --{name} (or a --grid that names them: {', '.join(shipped_grids())}).")
        _refuse_flags(options)
        named = any(word == "--config" or word.startswith("--config=") for word in options)
        return Grid(
            models=self.models,
            datasets=self.datasets,
            norm=self.norm,
            epsilons=self.epsilons,
            settings=self.settings,
            seeds=self.seeds,
            options=[*([] if named else ["--config", BASE_RECIPE]), *options],
            recipes=self.recipes,
            measurement=Measurement(self.protocol, self.eval_split, self.eval_points, self.trust_checks),
            folder=self.output_dir,
        )


# Flags of `train` that the grid sets itself, and with what.
SET_BY_GRID = {name: f"--{entry.name}" for entry in fields(GridArguments) for name in entry.metadata.get("sets", ())}


def read_grid(grid: str) -> tuple[dict[str, Any], list[str]]:
    """A grid file's own keys, and its options of `train` as flags.

    Args:
        grid: a YAML file, or the name of a shipped grid.

    Raises:
        ValueError: no such grid, or not a YAML mapping.
    """
    path = Path(grid) if os.path.isfile(grid) else GRIDS / f"{grid}.yaml"
    if not path.is_file():
        near = did_you_mean(alike(grid, shipped_grids()))
        raise ValueError(f"There is no grid {grid!r}.{near} Give a YAML file, or one of {', '.join(shipped_grids())}.")
    content = read_recipe(path)
    ours = {entry.name for entry in fields(GridArguments)}
    recipes = content.pop("config", [])
    recipes = recipes if isinstance(recipes, list) else [recipes]
    others = as_flags({name: value for name, value in content.items() if name not in ours})
    flags = [word for recipe in recipes for word in ("--config", str(recipe))] + others
    return {name: value for name, value in content.items() if name in ours}, flags


def shipped_grids() -> list[str]:
    """The names of the grids in this package."""
    return sorted(file.stem for file in GRIDS.glob("*.yaml"))


def _refuse_flags(options: Sequence[str]) -> None:
    given = [word.split("=", 1)[0][2:].replace("-", "_") for word in options if word.startswith("--")]
    of_every_cell = {*CELL_OPTIONS, *(each.name for each in launching(AdversarialTrainingArguments))}
    for name in given:
        if name in SET_BY_GRID:
            raise ValueError(f"--{name} is one for each cell of a grid: give {SET_BY_GRID[name]}.")
        if name in of_every_cell:
            raise ValueError(f"--{name}: the grid itself evaluates, saves and resumes its cells. Leave it out.")
