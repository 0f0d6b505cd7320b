"""Searching learning rates and weight decay as the paper does: by clean accuracy of training at a fixed eps."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from hf_robust_ft.provenance.choices import check_choice
from hf_robust_ft.training.arguments import AdversarialTrainingArguments
from hf_robust_ft.training.schedule_arguments import CONSTANT_EPS
from hf_robust_ft.training.trainer import AdversarialTrainer

logger = logging.getLogger(__name__)

PRUNERS = ("asha", "median", "none")
PAPER_RANGE = (1e-5, 1e-1)
STUDY = "learning rates"

# What every trial changes: fix (a constant eps), accuracy after each epoch and nothing else measured or stored.
TRIAL_SETTINGS = {
    **CONSTANT_EPS,
    "robust_eval": "no",
    "eval_strategy": IntervalStrategy.EPOCH,
    "save_strategy": SaveStrategy.NO,
    "load_best_model_at_end": False,
    "metric_for_best_model": None,
    "push_to_hub": False,
}


@dataclass(frozen=True)
class Trial:
    """One training run of a search.

    Args:
        values: argument name -> value tried.
        state: "complete", "pruned" or "failed".
        accuracy: clean validation accuracy after its last epoch, in [0, 1]; None if it failed before one ended.
        error: why it failed.
    """

    number: int
    values: dict[str, float]
    state: str
    accuracy: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Args:
        values: argument name -> the best trial's value, to be reused with the schedule.
        accuracy: its clean validation accuracy in [0, 1].
        trials: all of them, failures included.
    """

    values: dict[str, float]
    accuracy: float
    trials: list[Trial]

    def to_recipe(self, path: str | Path | None = None) -> str:
        """The found values as lines of a recipe, written to `path` if given."""
        counts = {
            state: sum(trial.state == state for trial in self.trials) for state in ("complete", "pruned", "failed")
        }
        lines = [
            f"# Found by search: clean validation accuracy {self.accuracy:.4f} at a constant eps, best of "
            f"{len(self.trials)} trials ({', '.join(f'{count} {state}' for state, count in counts.items())}).",
            *(f"{name}: {value:.3e}" for name, value in self.values.items()),
        ]
        text = "\n".join(lines) + "\n"
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text


def search_learning_rates(
    trainer: AdversarialTrainer,
    *,
    n_trials: int = 20,
    timeout: float | None = None,
    learning_rate: tuple[float, float] = PAPER_RANGE,
    weight_decay: tuple[float, float] | None = PAPER_RANGE,
    head_learning_rate: tuple[float, float] | None = None,
    pruner: str = "asha",
    recipe: str | Path | None = None,
) -> SearchResult:
    """Find the rates that give the best clean validation accuracy at a constant eps (*fix*), through Optuna.

    The paper (arXiv 2509.23325) searches for 30 minutes with ASHA and reuses what it finds for the schedule. Runs
    `trainer.hyperparameter_search`; every trial trains `trainer.model_init()` with the trainer's arguments, but for
    the values tried and for a constant eps. Afterwards the arguments are as before, and the model is released: set the
    found values on the arguments and call `train()`, or use the recipe.

    Args:
        trainer: made with `model_init`, which must return the same pretrained weights at each call, and one
            `eval_dataset`, the validation split.
        n_trials: at most this many trials.
        timeout: no trial starts after this many seconds; one that runs is finished.
        learning_rate: ends of the range, searched on a logarithmic scale.
        weight_decay: its range; None leaves the trainer's.
        head_learning_rate: its range; None leaves the trainer's (by default: the learning rate).
        pruner: what stops bad trials after an epoch: "asha" (successive halving, each rung after twice the epochs of
            the one below), "median" or "none".
        recipe: a YAML file to write the found values to; its folder is made.

    Raises:
        ImportError: Optuna is not installed.
        ValueError: arguments out of range, or a trainer that cannot be searched.
        RuntimeError: no trial was completed; the message says why.
    """
    try:
        import optuna
    except ImportError:
        raise ImportError("The search needs Optuna: pip install 'hf_robust_ft[search]'.") from None
    ranges = {
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "head_learning_rate": head_learning_rate,
    }
    ranges = {name: ends for name, ends in ranges.items() if ends is not None}
    check_search(ranges, n_trials, pruner)
    _check_trainer(trainer, ranges)
    if recipe is not None:  # now, not when the search is over
        Path(recipe).parent.mkdir(parents=True, exist_ok=True)

    errors: dict[int, str] = {}
    storage = optuna.storages.InMemoryStorage()
    with _trial_settings(trainer.args), _recorded_errors(trainer, errors):
        try:
            best = trainer.hyperparameter_search(
                hp_space=lambda trial: {
                    name: trial.suggest_float(name, *ends, log=True) for name, ends in ranges.items()
                },
                compute_objective=lambda metrics: metrics["eval_clean_accuracy"],
                n_trials=n_trials,
                direction="maximize",
                backend="optuna",
                timeout=timeout,
                catch=(FloatingPointError,),
                study_name=STUDY,
                storage=storage,
                sampler=optuna.samplers.TPESampler(seed=trainer.args.seed),
                pruner=_build_pruner(pruner, trainer),
            )
        except ValueError:
            trials = _trials(optuna.load_study(study_name=STUDY, storage=storage), errors)
            if any(trial.state == "complete" for trial in trials):
                raise
            raise RuntimeError(f"None of {len(trials)} trials was completed: {_why(trials)}.") from None
    trials = _trials(optuna.load_study(study_name=STUDY, storage=storage), errors)
    failed = [trial for trial in trials if trial.state == "failed"]
    if failed:
        logger.warning("%d of %d trials failed: %s", len(failed), len(trials), _why(failed))
    result = SearchResult(dict(best.hyperparameters), best.objective, trials)
    result.to_recipe(recipe)
    return result


def check_search(ranges: Mapping[str, Sequence[float]], n_trials: int, pruner: str) -> None:
    """Refuse what no search can follow.

    Raises:
        ValueError: an unknown pruner, no trials, or a range that is none.
    """
    check_choice("pruner", pruner, PRUNERS)
    if n_trials < 1:
        raise ValueError(f"n_trials (--trials) must be at least 1, got {n_trials}.")
    for name, ends in ranges.items():
        if len(ends) != 2 or not 0 < ends[0] <= ends[1] < math.inf:
            raise ValueError(f"The range of {name} must be two increasing positive numbers, got {tuple(ends)}.")


def _check_trainer(trainer: AdversarialTrainer, ranges: Mapping[str, Sequence[float]]) -> None:
    if trainer.model_init is None:
        raise ValueError(
            "A search starts every trial from the pretrained weights: make the trainer with model_init=lambda: "
            "load_image_classifier(...)[0] instead of model=..."
        )
    if trainer.eval_dataset is None or isinstance(trainer.eval_dataset, dict):
        raise ValueError("A search needs one eval_dataset, the validation split.")
    if trainer.args.world_size > 1:
        raise ValueError(
            f"A search runs in one process, got {trainer.args.world_size}: a trial that is pruned or fails would leave "
            "the others waiting."
        )
    if not trainer.scheduler_callback.follows_args:
        raise ValueError("The trainer has an EpsilonSchedulerCallback of your own, so eps cannot be held constant.")
    if trainer.args.probe_epochs > 0:
        raise ValueError(
            f"A trial trains the model as model_init() returns it, and probe_epochs={trainer.args.probe_epochs:g} asks "
            "for a head that was trained first: search without probe_epochs."
        )
    if "head_learning_rate" in ranges and trainer.args.freeze == "backbone":
        raise ValueError("freeze='backbone' trains the head alone: search its learning_rate.")


def _build_pruner(name: str, trainer: AdversarialTrainer) -> Any:
    import optuna

    batches = len(trainer.get_train_dataloader())
    epoch = max(math.ceil(batches / trainer.args.gradient_accumulation_steps), 1)  # Trainer reports at these steps
    if name == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=epoch, reduction_factor=2)
    return optuna.pruners.MedianPruner() if name == "median" else optuna.pruners.NopPruner()


@contextmanager
def _trial_settings(args: AdversarialTrainingArguments) -> Iterator[None]:
    """The arguments of a trial for a while; a search leaves the last trial's values in them."""
    before = dict(vars(args))
    try:
        for name, value in TRIAL_SETTINGS.items():
            setattr(args, name, value)
        yield
    finally:
        vars(args).clear()
        vars(args).update(before)


@contextmanager
def _recorded_errors(trainer: AdversarialTrainer, errors: dict[int, str]) -> Iterator[None]:
    """Note why trials fail, which Optuna only logs."""
    train = trainer.train

    def recording(*args: Any, trial: Any = None, **kwargs: Any):
        try:
            return train(*args, trial=trial, **kwargs)
        except FloatingPointError as error:
            errors[trial.number] = str(error)
            raise

    trainer.train = recording
    try:
        yield
    finally:
        del trainer.train
        trainer.hp_search_backend = None


def _trials(study: Any, errors: dict[int, str]) -> list[Trial]:
    names = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    return [
        Trial(
            number=trial.number,
            values=dict(trial.params),
            state=names[trial.state.name],
            accuracy=trial.intermediate_values[max(trial.intermediate_values)] if trial.intermediate_values else None,
            error=errors.get(trial.number),
        )
        for trial in study.trials
    ]


def _why(trials: list[Trial]) -> str:
    return "; ".join(
        f"trial {trial.number} ({', '.join(f'{name}={value:.2e}' for name, value in trial.values.items())}): "
        f"{trial.error or trial.state}"
        for trial in trials
    )
