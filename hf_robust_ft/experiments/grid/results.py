"""What became of one cell of a grid: the JSON file that a finished cell leaves, and all that tables are made of."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_robust_ft.evaluation.convergence_text import first_round
from hf_robust_ft.experiments.grid.cells import Cell
from hf_robust_ft.experiments.paper.numbers import Scores
from hf_robust_ft.provenance.atomic import write_whole
from hf_robust_ft.reporting.measures import MEASURES, Measure, attacks_of
from hf_robust_ft.reporting.report_files import Report, report_of


@dataclass(frozen=True)
class MeasuredCell(Cell):
    """A cell that was trained and measured; as JSON its fields stand beside those of `Cell`.

    Args:
        report: what was measured on the held-out split at eps, whatever eps training saw.
        validation: by epoch: `epochs`, the clean score of each measure under its curve's name (`accuracies`), and
            `eps`, the budget of training (pixel units of [0, 1]).
        passes: images that passed through the model, by kind: `training` (gradient of the weights), `attack`
            (gradient of the pixels), `forward`; of training, without the evaluation. Counted as `PassCounter` does.
        seconds: wall time of `training` and `evaluation`.
        configuration: every setting that the figures depend on.
        seen_by: the measure that the scores are of, where the task has several; None for its first. It is not stored.
    """

    report: Report
    validation: dict[str, list[float]]
    passes: dict[str, float]
    seconds: dict[str, float]
    configuration: dict[str, Any] = field(default_factory=dict)
    seen_by: Measure | None = field(default=None, compare=False)

    @property
    def measure(self) -> Measure:
        """What the scores are of."""
        return self.seen_by or MEASURES[type(self.report)][0]

    @property
    def curve(self) -> list[float]:
        """The measure at each eps of the grid."""
        return getattr(self.report, self.measure.curve)

    @property
    def attacks(self) -> list[dict[str, Any]]:
        """The settings of the attacks that it was measured by."""
        return attacks_of(self.report)

    @property
    def protocol(self) -> str:
        """How it was measured, in a few words: figures of different protocols are never compared.

        E.g. "paper, APGD-10 (ce), 5 points".
        """
        report, losses = self.report, ", ".join(attack["loss"] for attack in self.attacks)
        steps = f"auto up to {report.convergence['limit']}" if report.convergence else self.attacks[0]["steps"]
        return f"{report.protocol}, APGD-{steps} ({losses}), {len(report.epsilons)} points"

    @property
    def scores(self) -> Scores:
        """What is reported: with `attack_steps="auto"` the converged figures."""
        measure = self.measure
        return Scores(*(getattr(self.report, name) for name in (measure.clean, measure.adversarial, measure.expected)))

    @property
    def first_steps(self) -> int:
        """Attack steps of the figures that may stand beside the paper's."""
        first = first_round(self.report.convergence)
        return first["steps"] if first else self.attacks[0]["steps"]

    @property
    def first_scores(self) -> Scores:
        """The scores after `first_steps`; those reported, where the steps were fixed."""
        first = first_round(self.report.convergence)
        return (
            self.scores._replace(adversarial=first[self.measure.adversarial], expected=first[self.measure.expected])
            if first
            else self.scores
        )

    def to_json(self, path: str | Path) -> None:
        """Write it whole or not at all: a run that is killed here leaves no half a file."""
        content = dataclasses.asdict(self) | {"report": self.report.to_dict()}
        del content["seen_by"]
        write_whole(path, json.dumps(content, indent=1) + "\n")

    @classmethod
    def from_json(cls, path: str | Path) -> "MeasuredCell":
        """Read a finished cell.

        Raises:
            ValueError: the file is no JSON, or no cell's.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            # Cells of a grid file once kept its seeds as text.
            known = {"report": report_of(content["report"]), "seed": int(content["seed"])}
            result = cls(**{**content, **known})
            if not {"epochs", result.measure.curve, "eps"} <= set(result.validation):
                raise ValueError(f"validation lacks epochs, {result.measure.curve} or eps")
            return result
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path} is no result of a grid's cell ({error}). Move it away to run the cell again."
            ) from None
