"""The cells of a grid: which run each is, and the options of `train` that describe it."""

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from hf_robust_ft.attacks.threat_model import ThreatModel, format_eps, parse_eps
from hf_robust_ft.evaluation.protocols import get_protocol, resolve_epsilons
from hf_robust_ft.experiments.grid.settings import setting_name, setting_options, table_name
from hf_robust_ft.experiments.planning import configuration
from hf_robust_ft.provenance.choices import check_choice
from hf_robust_ft.provenance.file_names import as_file_name
from hf_robust_ft.runs.arguments import DataArguments, ModelArguments
from hf_robust_ft.runs.options import parse_options, without_device
from hf_robust_ft.runs.recipes import as_flags
from hf_robust_ft.training.arguments import AdversarialTrainingArguments

# What every cell changes in the user's options: a checkpoint after each epoch to go on from; what is measured at the
# end is measured by the grid.
CELL_OPTIONS = {
    "eval_strategy": "epoch", "save_strategy": "epoch", "save_total_limit": 1, "save_only_model": False,
    "load_best_model_at_end": False, "robust_eval": "no", "report_to": "none", "logging_strategy": "epoch",
}  # fmt: skip
# What says no more of a cell: the same in all, its folder, and the grid of eps, which is compared as `epsilons`.
NOT_COMPARED = (*CELL_OPTIONS, "output_dir", "eval_epsilons")


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Args:
        model: backbone, by the name it was asked for (a paper's short name, a Hub id).
        dataset: likewise.
        norm: of the perturbation.
        eps: the budget that is trained towards and measured, as given: "4/255".
        setting: how eps is scheduled: "standard", "fix", "hinge", a schedule, or a recipe's name.
        seed: of weights, order and augmentation.
    """

    model: str
    dataset: str
    norm: str
    eps: str
    setting: str
    seed: int

    @property
    def name(self) -> str:
        """A file's name; one for each cell.

        >>> Cell("timm/resnet18", "cub200", "Linf", "4/255", "hinge:12,37", 0).name
        'timm-resnet18.cub200.Linf.4_255.hinge-12_37.seed0'
        """
        parts = (self.model, self.dataset, self.norm, self.eps.replace("/", "_"), self.setting, f"seed{self.seed}")
        return as_file_name(".".join(re.sub(r"[^A-Za-z0-9_=-]", "_", re.sub(r"[/:.]", "-", part)) for part in parts))


class Measurement(NamedTuple):
    """How a cell is measured once it is trained.

    Args:
        protocol: a key of `PROTOCOLS`.
        split: held-out split: test, or validation while settings are still being chosen.
        points: equal steps of the grid of eps; None for the paper's, every 1/255.
        checks: whether trust checks run.
    """

    protocol: str = "paper"
    split: str = "test"
    points: int | None = None
    checks: bool = True


class CellArguments(NamedTuple):
    """A cell's options, parsed."""

    model: ModelArguments
    data: DataArguments
    training: AdversarialTrainingArguments


@dataclass(frozen=True)
class Job:
    """A cell and all it takes to run it anywhere: plain values, which travel to other processes.

    Args:
        cell: which run.
        options: the options of `train` but for the grid's own.
        measurement: how it is measured.
        folder: the grid's.
    """

    cell: Cell
    options: tuple[str, ...]
    measurement: Measurement
    folder: str

    @property
    def result(self) -> Path:
        """The file that the cell leaves."""
        return Path(self.folder) / "cells" / f"{self.cell.name}.json"

    @property
    def failure(self) -> Path:
        """What is written where it fails."""
        return Path(self.folder) / "failed" / f"{self.cell.name}.txt"

    @property
    def failure_reason(self) -> str:
        """What `failure` says in its first line."""
        return self.failure.read_text(encoding="utf-8").partition("\n")[0]

    @property
    def work(self) -> Path:
        """Its checkpoints, and images measured so far, until it is done."""
        return Path(self.folder) / "unfinished" / self.cell.name

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"measurement": self.measurement._asdict()}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Job":
        return cls(
            Cell(**content["cell"]), tuple(content["options"]), Measurement(**content["measurement"]), content["folder"]
        )

    def parse(self, runs: bool = True) -> CellArguments:
        """The cell's options as `train` has them.

        Args:
            runs: False where the cell is only told of, maybe on a machine without the device that it runs on.

        Raises:
            ValueError: what `train` refuses of them, with the cell's name.
        """
        types, titles = (ModelArguments, DataArguments, AdversarialTrainingArguments), ("model", "data", "training")
        try:
            protocol = self.measurement.protocol
            of_trainer = "paper" if get_protocol(protocol).by_distance else protocol
            flags = [*self.options, "--eval_protocol", of_trainer]  # its plan and its number of steps
            flags += [] if runs else without_device("--tf32" in self.options)
            parsed = CellArguments(*parse_options("reproduce", flags, types, titles, "").parsed)
            check_choice("split", self.measurement.split, ("test", "validation"))
        except ValueError as error:
            raise ValueError(f"Cell {self.cell.name}: {error}") from None
        return parsed

    def configuration(self, arguments: CellArguments) -> dict[str, Any]:
        """Every setting that the figures depend on; folders of this machine by their names."""
        found = configuration(*arguments) | self.measurement._asdict()
        found["epsilons"] = [format_eps(eps) for eps in arguments.training.evaluation_grid]
        return {name: value for name, value in found.items() if name not in NOT_COMPARED}


class Grid(NamedTuple):
    """What is crossed with what.

    Args:
        models, datasets, norm, epsilons: which runs; every eps in pixel units of [0, 1].
        settings: how eps is scheduled (`settings.setting_options`).
        seeds: one run of each for each.
        options: options of `train` for all cells.
        recipes: "MODEL/DATASET=RECIPE" (with * and ?): options for some cells, below the flags.
        measurement: of each cell.
        folder: where results go.
    """

    models: Sequence[str]
    datasets: Sequence[str]
    norm: str
    epsilons: Sequence[str]
    settings: Sequence[str]
    seeds: Sequence[int]
    options: Sequence[str]
    recipes: Sequence[str]
    measurement: Measurement
    folder: str

    def jobs(self) -> list[Job]:
        """The cells, those of one backbone and dataset beside each other.

        Raises:
            ValueError: two cells of one name, or that tables would call the same; a budget of 0, a seed that is none,
                or a recipe for no cell.
        """
        self._check_values()
        chosen = [_pattern(text) for text in self.recipes]
        used: set[str] = set()
        found: dict[str, Job] = {}
        rows: dict[tuple, str] = {}
        every = product(self.models, self.datasets, self.epsilons, self.seeds, self.settings)
        for model, dataset, eps, seed, setting in every:
            cell = Cell(_shown(model), _shown(dataset), self.norm, str(eps), setting_name(setting), seed)
            if cell.name in found:
                raise ValueError(f"Two cells of the grid are called {cell.name}: give each value once.")
            row = (cell.model, cell.dataset, format_eps(parse_eps(cell.eps)), table_name(cell.setting), seed)
            if row in rows:
                raise ValueError(f"{rows[row]} and {cell.name} are the same cell: give each value once.")
            rows[row] = cell.name
            matching = [recipe for pattern, recipe in chosen if fnmatch(f"{cell.model}/{cell.dataset}", pattern)]
            used.update(matching)
            own = {"model": model, "dataset": dataset, "norm": self.norm, "eps": str(eps), "seed": seed}
            own |= setting_options(setting) | CELL_OPTIONS | self._points(str(eps))
            configs = [word for recipe in matching for word in ("--config", recipe)]
            folder = ["--output_dir", str(Path(self.folder) / "unfinished" / cell.name)]
            options = (*self.options, *configs, *as_flags(own), *folder)
            found[cell.name] = Job(cell, options, self.measurement, self.folder)
        unused = [recipe for _, recipe in chosen if recipe not in used]
        if unused:
            raise ValueError(
                f"No cell of the grid takes the recipe {', '.join(unused)}: see its MODEL/DATASET pattern."
            )
        return list(found.values())

    def _check_values(self) -> None:
        for eps in self.epsilons:
            if ThreatModel(self.norm, str(eps)).eps == 0:
                raise ValueError(
                    f"eps {eps}: a grid measures up to budgets above 0. Training without an attack is the setting "
                    "'standard'."
                )
        for seed in self.seeds:
            if not 0 <= seed < 2**32:
                raise ValueError(f"A seed is a whole number from 0 to 2^32 - 1, got {seed}.")

    def _points(self, eps: str) -> dict[str, list[str]]:
        """The grid of eps that is measured, whatever a recipe says of another budget's."""
        threat_model, count = ThreatModel(self.norm, eps), self.measurement.points
        equal = [threat_model.eps * k / count for k in range(count)] if count else None
        inner = equal or resolve_epsilons(None, threat_model)[:-1]
        return {"eval_epsilons": [*(repr(value) for value in inner), eps]}


def _pattern(text: str) -> tuple[str, str]:
    pattern, mark, recipe = text.partition("=")
    if not mark or "/" not in pattern or not recipe:
        raise ValueError(f"{text!r} is not MODEL/DATASET=RECIPE, e.g. 'swin/*=found.yaml'.")
    return pattern, recipe


def _shown(name: str) -> str:
    """A folder or file of this machine by its last part."""
    return Path(name).resolve().name if os.path.exists(os.path.expanduser(name)) else name
