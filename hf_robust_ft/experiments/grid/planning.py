"""What a grid would cost, before any of it is spent."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_robust_ft.experiments.grid.cells import CellArguments, Job
from hf_robust_ft.experiments.planning import Plan, PlanArguments, hours_text, plan_run


@dataclass(frozen=True)
class GridPlan:
    """Totals of a grid's dry run.

    Args:
        rows: one for each kind of cell (all but the seed): `cell`, `seeds`, `done` of them, and, of all those left
            together, `images` (training), `attack` (passes with the gradient of the pixels, evaluation included),
            `flops`, `gpu_hours`.
        gpu: as in `Plan`.
    """

    rows: list[dict[str, Any]]
    gpu: dict[str, Any]

    @property
    def totals(self) -> dict[str, Any]:
        """Sums over the rows."""
        return {
            name: sum(row[name] for row in self.rows)
            for name in ("seeds", "done", "images", "attack", "flops", "gpu_hours")
        }

    def to_json(self, path: str | Path) -> None:
        content = {"rows": self.rows, "totals": self.totals, "gpu": self.gpu}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def __str__(self) -> str:
        width = max(len(row["cell"]) for row in self.rows)
        columns = f"{'runs':>5} {'done':>5} {'images':>14} {'attack passes':>15} {'PFLOPs':>10} {'GPU hours':>10}"
        lines = [_row(row["cell"], row, width) for row in self.rows]
        gpu = self.gpu
        return "\n".join(
            [
                "Plan: nothing is trained, the network is not used. Figures are of the runs that are not done.",
                f"{'cell':<{width}} {columns}",
                *lines,
                _row("together", self.totals, width),
                f"Attack passes: images x steps, training and evaluation, at most. GPU hours: {gpu['name']}, "
                f"{gpu['precision']}, peak {gpu['peak_tflops']:g} TFLOPS, {gpu['utilisation']:.0%} of it assumed "
                "(--utilisation).",
            ]
        )


def plan_grid(jobs: Sequence[Job], parsed: Sequence[CellArguments], plan_args: PlanArguments) -> GridPlan:
    """Plan what is left of a grid. The network is not used.

    Raises:
        ValueError: as `plan_run`.
    """
    rows: dict[str, dict[str, Any]] = {}
    plans: dict[str, Plan] = {}
    for job, arguments in zip(jobs, parsed, strict=True):
        kind = job.cell.name.rpartition(".seed")[0]
        if kind not in plans:
            plans[kind] = _plan(arguments, plan_args)
            rows[kind] = {"cell": kind, "seeds": 0, "done": 0, "images": 0, "attack": 0, "flops": 0, "gpu_hours": 0.0}
        row, plan = rows[kind], plans[kind]
        row["seeds"] += 1
        if job.result.is_file():
            row["done"] += 1
            continue
        row["images"] += plan.training.images + sum(each.images for each in plan.phases if each.is_probes_training)
        row["attack"] += sum(phase.input_gradient for phase in plan.phases)
        row["flops"] += plan.flops()
        row["gpu_hours"] += plan.hours(plan.flops())
    return GridPlan(list(rows.values()), next(iter(plans.values())).gpu)


def _plan(arguments: CellArguments, plan_args: PlanArguments) -> Plan:
    """`train`'s plan with the evaluation that the grid makes at the end."""
    return plan_run(arguments.model, arguments.data, arguments.training, plan_args, attacked_test=True)


def _row(name: str, row: dict[str, Any], width: int) -> str:
    return (
        f"{name:<{width}} {row['seeds']:>5} {row['done']:>5} {row['images']:>14,} {row['attack']:>15,} "
        f"{row['flops'] / 1e15:>10.3g} {hours_text(row['gpu_hours']):>10}"
    )
