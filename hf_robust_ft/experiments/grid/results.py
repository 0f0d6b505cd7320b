"""What became of one cell of a grid: the JSON file that a finished cell leaves, and all that tables are made of."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_robust_ft.evaluation.convergence_text import first_round
from hf_robust_ft.evaluation.report import RobustnessReport
from hf_robust_ft.experiments.grid.cells import Cell
from hf_robust_ft.experiments.paper.numbers import Scores
from hf_robust_ft.provenance.atomic import write_whole


@dataclass(frozen=True)
class MeasuredCell(Cell):
    """A cell that was trained and measured; as JSON its fields stand beside those of `Cell`.

    Args:
        report: what was measured on the held-out split at eps, whatever eps training saw.
        validation: by epoch: `epochs`, clean `accuracies`, and `eps`, the budget of training (pixel units of [0, 1]).
        passes: images that passed through the model, by kind: `training` (gradient of the weights), `attack`
            (gradient of the pixels), `forward`; of training, without the evaluation. Counted as `PassCounter` does.
        seconds: wall time of `training` and `evaluation`.
        configuration: every setting that the figures depend on.
    """

    report: RobustnessReport
    validation: dict[str, list[float]]
    passes: dict[str, float]
    seconds: dict[str, float]
    configuration: dict[str, Any] = field(default_factory=dict)

    @property
    def protocol(self) -> str:
        """How it was measured, in a few words: figures of different protocols are never compared.

        E.g. "paper, APGD-10 (ce), 5 points".
        """
        attack, report = self.report.attack, self.report
        steps = f"auto up to {report.convergence['limit']}" if report.convergence else attack["steps"]
        return f"{report.protocol}, APGD-{steps} ({attack['loss']}), {len(report.epsilons)} points"

    @property
    def scores(self) -> Scores:
        """What is reported: with `attack_steps="auto"` the converged figures."""
        return Scores(self.report.clean_accuracy, self.report.adversarial_accuracy, self.report.expected_robustness)

    @property
    def first_steps(self) -> int:
        """Attack steps of the figures that may stand beside the paper's."""
        first = first_round(self.report.convergence)
        return first["steps"] if first else self.report.attack["steps"]

    @property
    def first_scores(self) -> Scores:
        """The scores after `first_steps`; those reported, where the steps were fixed."""
        first = first_round(self.report.convergence)
        return (
            self.scores._replace(adversarial=first["adversarial_accuracy"], expected=first["expected_robustness"])
            if first
            else self.scores
        )

    def to_json(self, path: str | Path) -> None:
        """Write it whole or not at all: a run that is killed here leaves no half a file."""
        write_whole(path, json.dumps(dataclasses.asdict(self) | {"report": self.report.to_dict()}, indent=1) + "\n")

    @classmethod
    def from_json(cls, path: str | Path) -> "MeasuredCell":
        """Read a finished cell.

        Raises:
            ValueError: the file is no JSON, or no cell's.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            # Cells of a grid file once kept its seeds as text.
            known = {"report": RobustnessReport(**content["report"]), "seed": int(content["seed"])}
            result = cls(**{**content, **known})
            if not {"epochs", "accuracies", "eps"} <= set(result.validation):
                raise ValueError("validation lacks epochs, accuracies or eps")
            return result
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path} is no result of a grid's cell ({error}). Move it away to run the cell again."
            ) from None
