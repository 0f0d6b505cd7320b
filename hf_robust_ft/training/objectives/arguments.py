"""What training minimises, as arguments."""

import math
from dataclasses import dataclass, field
from functools import partial

from hf_robust_ft.provenance.affects import DeclaredArguments
from hf_robust_ft.provenance.choices import check_choice
from hf_robust_ft.training.objectives.passes import Objective
from hf_robust_ft.training.objectives.table import DEFAULT_BETA, OBJECTIVES


@dataclass
class ObjectiveArguments(DeclaredArguments):
    """The `objective` and its weights."""

    objective: str = field(
        default="at",
        metadata={
            "help": "What training minimises: at (the loss on adversarial images), trades, mart.",
            "affects": "weights",
        },
    )
    objective_beta: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the KL term (default: trades 6, mart 5).",
            "affects": "weights",
            "of": "objective",
        },
    )

    def resolve_objective(self) -> None:
        """Check these and enter the weight in use.

        Raises:
            ValueError: an unknown objective, or a weight that is out of range or of no use.
        """
        check_choice("objective", self.objective, OBJECTIVES, "objectives")
        beta, default = self.objective_beta, DEFAULT_BETA.get(self.objective)
        if default is None and beta is not None:
            raise ValueError(
                f"objective_beta={beta} does nothing with objective={self.objective!r}: leave it out, or set objective "
                f"to {' or '.join(DEFAULT_BETA)}."
            )
        if beta is not None and (isinstance(beta, (bool, str)) or not 0 <= beta < math.inf):
            raise ValueError(f"objective_beta must be finite and not negative, e.g. {default}; got {beta!r}.")
        self.objective_beta = self._beta

    @property
    def _beta(self) -> float | None:
        """The weight in use, also where a search has changed the objective since."""
        default = DEFAULT_BETA.get(self.objective)
        return default if default is None or self.objective_beta is None else self.objective_beta

    @property
    def passes_under_attack(self) -> int:
        """Training passes that an attacked image takes; one that is not attacked takes one."""
        return 2 if self._beta else 1

    def build_objective(self) -> Objective:
        """What a training step minimises."""
        function, beta = OBJECTIVES[self.objective], self._beta
        return function if beta is None else partial(function, beta=beta)
