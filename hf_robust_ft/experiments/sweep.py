"""Standard and fix runs over several eps_g, in one folder, each trained once: what a diagnosis is made of."""

import copy
import json
import os
import shutil
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from hf_robust_ft.attacks.threat_model import ThreatModel, format_eps
from hf_robust_ft.provenance.affects import arguments, settings, unsaid
from hf_robust_ft.provenance.atomic import write_whole
from hf_robust_ft.provenance.class_names import class_names
from hf_robust_ft.provenance.record import differences
from hf_robust_ft.provenance.validation_curves import PAPER_THRESHOLD, TASK_FACTS, ValidationCurve, read_run
from hf_robust_ft.reporting.diagnosis_text import chance_warning
from hf_robust_ft.runs.arguments import DataArguments, ModelArguments
from hf_robust_ft.runs.fine_tune import build_trainer, prepare_run
from hf_robust_ft.runs.recipes import RUN_ARGUMENTS
from hf_robust_ft.training.arguments import AdversarialTrainingArguments
from hf_robust_ft.training.base.checkpoints import newest_complete
from hf_robust_ft.training.probe_arguments import NO_PROBE
from hf_robust_ft.training.schedule_arguments import CONSTANT_EPS
from hf_robust_ft.training.trainer import AdversarialTrainer

# What every run changes in the user's arguments: a constant eps, clean accuracy and a checkpoint after each epoch.
RUN_SETTINGS = {
    **CONSTANT_EPS,
    **NO_PROBE,
    "eval_epsilons": None,
    "robust_eval": "no",
    "do_eval": True,
    "eval_strategy": IntervalStrategy.EPOCH,
    "save_strategy": SaveStrategy.EPOCH,
    "save_total_limit": 1,
    "save_only_model": False,
    "load_best_model_at_end": False,
    "metric_for_best_model": None,
    "resume_from_checkpoint": None,
    "push_to_hub": False,
}
CONFIGURATION = "configuration.json"
UNFINISHED = "unfinished"
# Set for each run, so no part of what the runs have in common.
PER_RUN = ("eps", "seed", *CONSTANT_EPS)


class SweepRun(NamedTuple):
    """One run of a sweep.

    Args:
        eps: its constant budget as given, e.g. "4/255"; "0" is standard fine-tuning.
        seed: of weights, order and augmentation.
    """

    eps: str
    seed: int

    @property
    def name(self) -> str:
        """A folder's name.

        >>> SweepRun("4/255", 0).name, SweepRun("0", 1).name
        ('fix-4_255-seed0', 'standard-seed1')
        """
        eps = ThreatModel("L2", self.eps).eps  # any norm: only the number is wanted
        kind = f"fix-{format_eps(eps)}" if eps > 0 else "standard"
        return f"{kind}-seed{self.seed}".replace("/", "_")


class StopOnceAdapted(TrainerCallback):
    """Ends training after the evaluation whose clean accuracy exceeds `threshold`."""

    def __init__(self, threshold: float):
        self.threshold = threshold

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if metrics["eval_clean_accuracy"] > self.threshold:
            control.should_training_stop = True


def train_sweep(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: AdversarialTrainingArguments,
    runs: Sequence[SweepRun],
    threshold: float = PAPER_THRESHOLD,
    *,
    stops_early: bool = False,
) -> list[ValidationCurve]:
    """The validation curves of the runs; those that `args.output_dir` holds already are not trained again.

    A run that was interrupted goes on from its last checkpoint. Its curve is kept as `curves/<run>.json` once it is
    done, and its checkpoints are then deleted.

    Args:
        model_args, data_args, args: of every run, up to eps, its schedule, and the seed.
        runs: which ones; more may be added to a folder later.
        threshold: validation accuracy above which a run has adapted; one that guessing exceeds is warned of.
        stops_early: end fix runs once they have adapted.

    Raises:
        ValueError: a folder made with another configuration, `max_steps` or streaming in place of epochs, or what
            `fine_tune` refuses.
    """
    if args.max_steps > 0 or data_args.streaming:
        raise ValueError("Delays are counted in epochs: set num_train_epochs, not max_steps, and do not stream.")
    _check_budgets(runs, args.norm)
    stop_above = threshold if stops_early else None
    folder = Path(args.output_dir)
    _keep_configuration(folder, _configuration(model_args, data_args, args, stop_above), args.process_index == 0)
    curves = []
    for run in runs:
        file = folder / "curves" / f"{run.name}.json"
        if file.is_file():
            _tell(args, f"=== {run.name}: done before")
            curves.append(read_run(file))
        else:
            curves.append(_train(model_args, data_args, _run_arguments(args, run, folder), run, threshold, stops_early))
        if args.process_index == 0:
            if not file.is_file():
                curves[-1].to_json(file)
            shutil.rmtree(_run_folder(folder, run), ignore_errors=True)
    with suppress(OSError):  # not empty: of runs that were not asked for this time
        (folder / UNFINISHED).rmdir()
    return curves


def _train(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: AdversarialTrainingArguments,
    run: SweepRun,
    threshold: float,
    stops_early: bool,
) -> ValidationCurve:
    checkpoint = newest_complete(args.output_dir)
    _tell(args, f"=== {run.name}" + (f": goes on from {os.path.basename(checkpoint)}" if checkpoint else ""))
    prepared = prepare_run(model_args, data_args, args)
    if warning := chance_warning(threshold, len(class_names(prepared.model.config))):
        warnings.warn(f"Beware: {warning}", UserWarning, stacklevel=3)
    trainer = build_trainer(model_args, args, prepared)
    if stops_early and args.threat_model.eps > 0:
        trainer.add_callback(StopOnceAdapted(threshold))
    trainer.train(resume_from_checkpoint=checkpoint)
    return _curve(trainer, run, prepared.facts)


def _curve(trainer: AdversarialTrainer, run: SweepRun, facts: dict[str, Any]) -> ValidationCurve:
    measured = {
        entry["epoch"]: entry["eval_clean_accuracy"]
        for entry in trainer.state.log_history
        if "eval_clean_accuracy" in entry
    }
    return ValidationCurve(
        name=run.name,
        eps=trainer.args.threat_model.eps,
        epochs=tuple(measured),
        accuracies=tuple(measured.values()),
        num_epochs=float(trainer.args.num_train_epochs),
        facts={
            **{name: facts[name] for name in TASK_FACTS if facts.get(name)},
            "norm": trainer.args.norm,
            "classes": class_names(trainer.model.config),
        },
    )


def _run_arguments(args: AdversarialTrainingArguments, run: SweepRun, folder: Path) -> AdversarialTrainingArguments:
    changed = copy.copy(args)
    for name, value in {
        **RUN_SETTINGS, "eps": run.eps, "seed": run.seed, "output_dir": str(_run_folder(folder, run)),
    }.items():  # fmt: skip
        setattr(changed, name, value)
    return changed


def _run_folder(folder: Path, run: SweepRun) -> Path:
    return folder / UNFINISHED / run.name


def _check_budgets(runs: Sequence[SweepRun], norm: str) -> None:
    names = [run.name for run in runs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"Each eps and each seed once: {', '.join(twice)} would be trained twice.")
    for run in runs:
        ThreatModel(norm, run.eps)


def _configuration(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: AdversarialTrainingArguments,
    stop_above: float | None,
) -> dict[str, Any]:
    """All that the runs have in common and their curves depend on; folders of this machine by their names."""
    training = {name: value for name, value in args.training_settings().items() if name not in PER_RUN}
    places = model_args.local_paths | data_args.local_paths
    named = {name: Path(path).expanduser().resolve().name for name, path in places.items()}
    return json.loads(json.dumps(settings(model_args, data_args) | named | training | {"stop_above": stop_above}))


def _keep_configuration(folder: Path, wanted: dict[str, Any], writes: bool) -> None:
    """Note what a folder's runs are made with, or compare with what is noted there.

    Raises:
        ValueError: something differs; what, and both values, are named.
    """
    file = folder / CONFIGURATION
    if not file.is_file():
        if writes:
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(file, json.dumps(wanted, indent=2) + "\n")
        return
    try:
        before = dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error}). Give another --output_dir, or delete the folder.") from None
    launch = {each.name for kind in RUN_ARGUMENTS for each in arguments(kind) if each.is_launch}
    before = {name: value for name, value in before.items() if name not in launch}  # once noted with the rest
    changed = differences(before, wanted, unsaid(*RUN_ARGUMENTS))
    if changed:
        raise ValueError(
            f"{folder} holds runs of another configuration: {changed}. Give the same values again, or "
            "another --output_dir."
        )


def _tell(args: AdversarialTrainingArguments, text: str) -> None:
    if args.process_index == 0:
        print(text, flush=True)
