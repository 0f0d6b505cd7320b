"""Validation accuracy over the epochs of a run: read from Trainer's own log, checked before runs are compared."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hf_robust_ft.provenance.atomic import write_whole
from hf_robust_ft.provenance.class_names import class_names

PAPER_THRESHOLD = 0.05
PAPER_SHARE = 0.9

STATE = "trainer_state.json"
KIND = "validation curve"  # in the JSON of a ValidationCurve
ACCURACY_KEYS = ("eval_clean_accuracy", "eval_accuracy")  # AdversarialTrainer's, and the examples' compute_metrics

# Of a run's metadata, what the runs of one diagnosis must have in common.
TASK_FACTS = ("dataset", "dataset_config", "dataset_revision", "split_sizes", "base_model", "augmentation")


@dataclass(frozen=True)
class ValidationCurve:
    """Clean validation accuracy over the course of one run.

    Args:
        name: what messages call the run.
        eps: its fixed eps_g in pixel units of [0, 1]; 0 is standard fine-tuning.
        epochs: when accuracy was measured, increasing; 1 is the end of the first epoch.
        accuracies: shares in [0, 1], one for each of `epochs`.
        num_epochs: length that the run was made for; one that was stopped earlier has measured up to there.
        facts: what the runs of one diagnosis must have in common (dataset, model, ...), as far as it is known.

    Raises:
        ValueError: on construction, for no measurement, epochs that do not increase, or accuracies that are no shares.
    """

    name: str
    eps: float
    epochs: tuple[float, ...]
    accuracies: tuple[float, ...]
    num_epochs: float
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if not self.epochs or len(self.epochs) != len(self.accuracies):
            raise ValueError(
                f"{self.name}: a validation curve needs one accuracy for each epoch, got {len(self.accuracies)} for "
                f"{len(self.epochs)} epochs."
            )
        if any(later <= earlier for earlier, later in zip(self.epochs, self.epochs[1:], strict=False)):
            raise ValueError(f"{self.name}: epochs must increase, got {list(self.epochs)}.")
        if not all(0 <= accuracy <= 1 for accuracy in self.accuracies):
            raise ValueError(f"{self.name}: accuracies are shares in [0, 1], got {list(self.accuracies)}.")

    @property
    def is_complete(self) -> bool:
        """Whether the run was measured at its end."""
        return self.epochs[-1] >= self.num_epochs - 1e-6

    @property
    def final_accuracy(self) -> float:
        """Accuracy at the last measurement."""
        return self.accuracies[-1]

    def delay(self, threshold: float = PAPER_THRESHOLD) -> float | None:
        """Adaptation delay: the first epoch whose accuracy exceeds `threshold`; None for never.

        >>> ValidationCurve("fix", 4 / 255, (1, 2, 3), (0.01, 0.05, 0.2), 3).delay()
        3
        """
        return next((epoch for epoch, seen in zip(self.epochs, self.accuracies, strict=True) if seen > threshold), None)

    def epoch_of_share(self, share: float = PAPER_SHARE) -> float:
        """The first epoch with `share` of the final accuracy."""
        return next(
            epoch
            for epoch, seen in zip(self.epochs, self.accuracies, strict=True)
            if seen >= share * self.final_accuracy - 1e-9  # 0.9 * 0.8 > 0.72 in floats
        )

    def to_json(self, path: str | Path) -> None:
        """Write the curve whole or not at all: a file that is there is a finished run."""
        write_whole(path, json.dumps({"kind": KIND, **dataclasses.asdict(self)}, indent=2) + "\n")

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "ValidationCurve":
        """A curve from what `to_json` wrote."""
        values = {entry.name: content[entry.name] for entry in dataclasses.fields(cls)}
        return cls(**values | {name: tuple(values[name]) for name in ("epochs", "accuracies")})


def check_comparable(curves: Sequence[ValidationCurve], threshold: float) -> None:
    """Refuse runs that do not belong in one diagnosis.

    Raises:
        ValueError: no standard or no fix run, or runs of different length, dataset, model or setting; the first two
            that differ are named.
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold is a share in (0, 1), got {threshold}: the paper's 5 % is 0.05.")
    for kind, wanted in (("standard run (eps 0)", lambda eps: eps == 0), ("fix run (eps > 0)", lambda eps: eps > 0)):
        _require(curves, kind, wanted)
    first, known = curves[0], {}
    for curve in curves:
        if curve.num_epochs != first.num_epochs:
            raise ValueError(
                f"Runs of different length cannot be compared: {first.name} has {first.num_epochs:g} epochs, "
                f"{curve.name} {curve.num_epochs:g}. Diagnose runs of one length."
            )
        shared = min(len(first.epochs), len(curve.epochs))
        if not np.allclose(first.epochs[:shared], curve.epochs[:shared], atol=1e-3):
            raise ValueError(
                f"{first.name} and {curve.name} were evaluated at different epochs ({_shown(first)} and "
                f"{_shown(curve)}), so their delays cannot be compared. Train both with eval_strategy='epoch'."
            )
        for key, value in curve.facts.items():
            other, seen = known.setdefault(key, (curve.name, value))
            if seen != value:
                raise ValueError(
                    f"Runs of different {key.replace('_', ' ')} cannot be mixed in one diagnosis: {other} has "
                    f"{str(seen)[:200]}, {curve.name} {str(value)[:200]}."
                )


def read_run(path: str | Path) -> ValidationCurve:
    """The validation curve of a run that is there already.

    Args:
        path: a `trainer_state.json`; a folder with one, or with checkpoints, the newest of which is taken; the JSON
            file of a curve that `hf-robust-ft diagnose` kept; or a cell of `hf-robust-ft reproduce`, standard or fix.

    Raises:
        ValueError: no such file, not a `trainer_state.json`, a run that did not reach its end, one whose eps changed
            while it trained, or no accuracy in its evaluations.
    """
    file = find_state(Path(path).expanduser())
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    if isinstance(state, dict) and state.get("kind") == KIND:
        return _stored_curve(state, file)
    if isinstance(state, dict) and {"setting", "validation"} <= set(state):
        return _cell_curve(state, file)
    if not isinstance(state, dict) or not isinstance(state.get("log_history"), list):
        raise ValueError(f"{file} is no trainer_state.json of transformers.Trainer: it has no log_history.")
    numbers = ("global_step", "max_steps", "epoch")
    if lacking := [key for key in numbers if not isinstance(state.get(key), (int, float))]:
        raise ValueError(f"{file} is no whole trainer_state.json: it lacks a number for {', '.join(lacking)}.")
    folder = file.parent
    home = folder.parent if folder.name.startswith("checkpoint-") else folder
    name = home.resolve().name
    if state["global_step"] < state["max_steps"]:
        raise ValueError(
            f"{name} stopped at step {state['global_step']} of {state['max_steps']}: its final accuracy is not known. "
            "Finish it, or leave it out."
        )
    measured = _accuracies(state["log_history"], name)
    if not state["epoch"] > 0:
        raise ValueError(f"{name} trained for {state['epoch']} epochs: there is nothing to diagnose. Leave it out.")
    facts = _facts_of(home) | _facts_of(folder) | {"steps_per_epoch": round(state["max_steps"] / state["epoch"])}
    epochs, accuracies = zip(*measured, strict=True)
    return ValidationCurve(
        name, _fixed_eps(state["log_history"], name), epochs, accuracies, num_epochs=state["epoch"], facts=facts
    )


def _cell_curve(cell: dict[str, Any], file: Path) -> ValidationCurve:
    """Of a grid's finished cell, whose training eps after each epoch is known."""
    try:
        seen, training = cell["validation"], cell["report"]["metadata"]
        if len(set(seen["eps"])) > 1:
            raise ValueError(
                f"{file.stem}: eps changed while it trained ({cell['setting']}). Give standard and fix runs."
            )
        facts = {name: training[name] for name in TASK_FACTS if training.get(name)}
        length = float(cell["configuration"]["num_train_epochs"])
        epochs, accuracies = tuple(seen["epochs"]), tuple(seen["accuracies"])
        return ValidationCurve(file.stem, seen["eps"][0], epochs, accuracies, length, facts)
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"{file} is no whole cell of a grid ({type(error).__name__}: {error}). Let reproduce run it again, or "
            "leave it out."
        ) from None


def _stored_curve(content: dict[str, Any], file: Path) -> ValidationCurve:
    try:
        return ValidationCurve.from_dict(content)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is no whole validation curve ({type(error).__name__}: {error}). Delete it and let diagnose train "
            "that run again, or leave it out."
        ) from None


def find_state(path: Path) -> Path:
    """The `trainer_state.json` of a run: the file itself, its folder's, or its newest checkpoint's.

    Raises:
        ValueError: there is none.
    """
    if path.is_file():
        return path
    checkpoints = sorted(path.glob(f"checkpoint-*/{STATE}"), key=lambda file: int(file.parent.name.split("-")[-1]))
    for file in (path / STATE, *reversed(checkpoints)):
        if file.is_file():
            return file
    raise ValueError(f"{path} holds no {STATE}, nor checkpoints with one: give the output_dir of a Trainer run.")


def _accuracies(log_history: list[dict], name: str) -> list[tuple[float, float]]:
    """Epochs with the accuracy then; of several evaluations of one epoch the first, made while training."""
    key = next((key for key in ACCURACY_KEYS if any(key in entry for entry in log_history)), None)
    if key is None:
        logged = sorted({key for entry in log_history for key in entry if key.startswith("eval_")})
        raise ValueError(
            f"{name} logged no {' or '.join(ACCURACY_KEYS)} (of its evaluations: {', '.join(logged) or 'nothing'}). "
            "Train with AdversarialTrainer or a compute_metrics that returns accuracy, and eval_strategy='epoch'."
        )
    measured: dict[float, float] = {}
    for entry in log_history:
        if key in entry and "epoch" in entry:
            measured.setdefault(entry["epoch"], entry[key])
    return sorted(measured.items())


def _fixed_eps(log_history: list[dict], name: str) -> float:
    """The eps that AdversarialTrainer put into every log; plain Trainer, which has none, attacks nothing."""
    seen = [entry["eps"] for entry in log_history if "eps" in entry]
    if not seen:
        return 0.0
    if max(seen) - min(seen) > 1e-9:
        raise ValueError(
            f"{name} was trained with a schedule: its eps went from {min(seen):g} to {max(seen):g}. A diagnosis takes "
            "standard (eps 0) and fix (eps_schedule='constant') runs."
        )
    return seen[0]


def _facts_of(folder: Path) -> dict[str, Any]:
    """What the files beside a state tell of the task: the report names the dataset, the model's config its classes."""
    facts: dict[str, Any] = {}
    for name, pick in (("config.json", _from_config), ("robustness_report.json", _from_report)):
        if (folder / name).is_file():
            facts |= pick(json.loads((folder / name).read_text(encoding="utf-8")))
    return facts


def _from_config(config: dict) -> dict[str, Any]:
    found = {"architecture": config.get("architectures"), "classes": class_names(config)}
    return {name: value for name, value in found.items() if value}


def _from_report(report: dict) -> dict[str, Any]:
    metadata = report.get("metadata", {})
    norm = report.get("threat_model", {}).get("norm")
    return {name: metadata[name] for name in TASK_FACTS if metadata.get(name)} | ({"norm": norm} if norm else {})


def _require(curves: Sequence[ValidationCurve], kind: str, wanted: Callable[[float], bool]) -> None:
    if not any(wanted(curve.eps) for curve in curves):
        given = ", ".join(curve.name for curve in curves) or "none"
        raise ValueError(f"There is no {kind} among the runs ({given}): a diagnosis compares the two kinds.")


def _shown(curve: ValidationCurve) -> str:
    return ", ".join(f"{epoch:g}" for epoch in curve.epochs[:3]) + (", ..." if len(curve.epochs) > 3 else "")
