"""One search for learning rates from names to a recipe; what `hf-robust-ft search` does."""

import os
from dataclasses import dataclass, field

from hf_robust_ft.experiments.rate_search import PAPER_RANGE, SearchResult, check_search, search_learning_rates
from hf_robust_ft.provenance.affects import DeclaredArguments
from hf_robust_ft.runs.fine_tune import DataArguments, ModelArguments, build_trainer, prepare_run
from hf_robust_ft.training.arguments import AdversarialTrainingArguments


@dataclass
class SearchArguments(DeclaredArguments):
    """How `hf-robust-ft search` searches. A range is two numbers; equal ones hold the value fixed."""

    trials: int = field(default=20, metadata={"help": "At most this many trials.", "affects": "weights"})
    minutes: float | None = field(
        default=30.0,
        metadata={
            "help": "No trial starts after so many minutes (the paper's 30); none for no limit.",
            "affects": "weights",
        },
    )
    learning_rates: list[float] = field(
        default_factory=lambda: list(PAPER_RANGE), metadata={"help": "Range of learning_rate.", "affects": "weights"}
    )
    weight_decays: list[float] = field(
        default_factory=lambda: list(PAPER_RANGE), metadata={"help": "Range of weight_decay.", "affects": "weights"}
    )
    head_learning_rates: list[float] | None = field(
        default=None, metadata={"help": "Range of head_learning_rate (default: not searched).", "affects": "weights"}
    )
    pruner: str = field(
        default="asha", metadata={"help": "What stops bad trials early: asha, median, none.", "affects": "weights"}
    )
    recipe: str = field(
        default="found.yaml", metadata={"help": "File for the values found; it must not exist.", "affects": "launch"}
    )

    def __post_init__(self):
        check_search(self.ranges, self.trials, self.pruner)
        if self.minutes is not None and self.minutes <= 0:
            raise ValueError(f"minutes must be positive, got {self.minutes}.")
        self.recipe = os.path.expanduser(self.recipe)

    @property
    def ranges(self) -> dict[str, tuple[float, ...]]:
        """What is searched: argument name -> ends of its range."""
        given = {
            "learning_rate": self.learning_rates or (),
            "weight_decay": self.weight_decays,
            "head_learning_rate": self.head_learning_rates,
        }
        return {name: tuple(ends) for name, ends in given.items() if ends is not None}


def search(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: AdversarialTrainingArguments,
    options: SearchArguments,
) -> SearchResult:
    """Search by clean validation accuracy of *fix*, and write what was found as a recipe; the test split is not used.

    Raises:
        ValueError: what `search_learning_rates`, loading or `AdversarialTrainer` refuse, or a recipe file that exists.
    """
    if os.path.exists(options.recipe):
        raise ValueError(f"{options.recipe} exists. Name another file with --recipe.")
    data_args.refuse_other_tasks("search", model_args.model, data_args.dataset)
    trainer = build_trainer(model_args, args, prepare_run(model_args, data_args, args), fresh_models=True)
    return search_learning_rates(
        trainer,
        n_trials=options.trials,
        timeout=None if options.minutes is None else 60 * options.minutes,
        **{"weight_decay": None, **options.ranges},
        pruner=options.pruner,
        recipe=options.recipe,
    )
