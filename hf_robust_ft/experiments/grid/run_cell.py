"""One cell of a grid, from its options to its JSON file; where it was interrupted, it goes on."""

import gc
import json
import shutil
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from filelock import FileLock, Timeout
from transformers.trainer_utils import set_seed

from hf_robust_ft.evaluation.evaluate import evaluate_robustness
from hf_robust_ft.evaluation.segmentation.evaluate import evaluate_segmentation
from hf_robust_ft.experiments.grid.cells import CellArguments, Job
from hf_robust_ft.experiments.grid.pass_counter import PassCounter
from hf_robust_ft.experiments.grid.results import MeasuredCell
from hf_robust_ft.provenance.affects import unsaid
from hf_robust_ft.provenance.atomic import write_whole
from hf_robust_ft.provenance.class_names import class_names
from hf_robust_ft.provenance.record import differences, environment_facts
from hf_robust_ft.reporting.measures import MEASURES
from hf_robust_ft.reporting.report_files import Report
from hf_robust_ft.runs.fine_tune import PreparedRun, build_trainer, prepare_run, probe_first
from hf_robust_ft.runs.recipes import RUN_ARGUMENTS
from hf_robust_ft.runs.task_arguments import SEGMENTATION
from hf_robust_ft.training.base.checkpoints import STATE, newest_complete
from hf_robust_ft.training.probed_head import ProbedHead, probe_folder
from hf_robust_ft.training.trainer import AdversarialTrainer

CONFIGURATION = "configuration.json"


class CellInProgress(RuntimeError):
    """Another process is at this cell."""


def run_cell(job: Job, *, keeps_checkpoint: bool = False) -> MeasuredCell:
    """Train and measure a cell, and write its file; all processes of a distributed run call this.

    Args:
        keeps_checkpoint: leave the trained model as `checkpoints/<cell>`.

    Raises:
        CellInProgress: another process of this machine runs it (of other machines where they share locks).
        ValueError: it was begun with another configuration, or what training and measuring refuse.
    """
    arguments = job.parse()
    is_main = arguments.training.process_index == 0
    with _only_here(job, is_main):
        if job.result.is_file():  # another process has finished it since
            return MeasuredCell.from_json(job.result)
        configuration = job.configuration(arguments)
        _check_begun(job, configuration, is_main)
        set_seed(arguments.training.seed)
        prepared = prepare_run(*arguments)
        trainer, counter = _train(job, arguments, prepared)
        before = time.monotonic()
        report = _measure(job, arguments, prepared, trainer)
        result = MeasuredCell(
            **vars(job.cell),
            report=report,
            validation=_validation(trainer.state.log_history, report),
            passes=counter.passes,
            seconds={"training": round(counter.seconds, 1), "evaluation": round(time.monotonic() - before, 1)},
            configuration=configuration,
        )
        if keeps_checkpoint:
            trainer.save_model(str(Path(job.folder) / "checkpoints" / job.cell.name))
        if is_main:
            result.to_json(job.result)
            job.failure.unlink(missing_ok=True)
            shutil.rmtree(job.work, ignore_errors=True)
    return result


def attempt_cell(job: Job, *, keeps_checkpoint: bool = False) -> MeasuredCell | None:
    """`run_cell`, whose failure is written to the cell's `failed` file and ends nothing else.

    Returns:
        None where it failed.

    Raises:
        CellInProgress: as `run_cell`.
    """
    try:
        return run_cell(job, keeps_checkpoint=keeps_checkpoint)
    except CellInProgress:
        raise
    except Exception as error:
        record_failure(job, f"{type(error).__name__}: {error}", traceback.format_exc())
        return None
    finally:
        gc.collect()  # the model of a failed cell would else stay on the device
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def record_failure(job: Job, reason: str, details: str = "") -> None:
    """Write why a cell failed: the reason in the first line."""
    job.failure.parent.mkdir(parents=True, exist_ok=True)
    first = " ".join(reason.split())
    job.failure.write_text(f"{first}\n\n{details}\n", encoding="utf-8")


def refuse_changes(job: Job, wanted: dict[str, Any]) -> None:
    """Raise where a cell was begun or finished with another configuration than it would have now.

    Raises:
        ValueError: what differs, and both values, are named.
    """
    begun = job.work / CONFIGURATION
    if job.result.is_file():
        before = MeasuredCell.from_json(job.result).configuration
    elif begun.is_file():
        try:
            before = dict(json.loads(begun.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{begun} is damaged ({error}). Delete the folder {job.work} to begin the cell again."
            ) from None
    else:
        return
    changed = differences(before, json.loads(json.dumps(wanted)), unsaid(*RUN_ARGUMENTS))
    if changed:
        raise ValueError(
            f"{job.folder} holds the cell {job.cell.name} of another configuration: {changed}. Give the same values "
            "again, or another --output_dir."
        )


def is_in_progress(job: Job) -> bool:
    """Whether another process is at this cell."""
    try:
        with _only_here(job, True):
            return False
    except CellInProgress:
        return True


@contextmanager
def _only_here(job: Job, locks: bool) -> Iterator[None]:
    """Hold the cell's lock, which the system releases where this process dies."""
    if not locks:
        yield
        return
    job.work.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(job.work.with_name(f"{job.cell.name}.lock"), timeout=0):
            yield
    except Timeout:
        raise CellInProgress(f"Another process is at the cell {job.cell.name}.") from None


def _check_begun(job: Job, configuration: dict[str, Any], writes: bool) -> None:
    refuse_changes(job, configuration)
    file = job.work / CONFIGURATION
    if writes and not file.is_file():
        job.work.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(configuration, indent=1) + "\n")


def _train(job: Job, arguments: CellArguments, prepared: PreparedRun) -> tuple[AdversarialTrainer, PassCounter]:
    checkpoint, images = newest_complete(job.work), len(prepared.splits["train"])
    begins_with_probe = arguments.training.probe_epochs > 0 and checkpoint is None
    if begins_with_probe:
        probe_first(arguments.model, arguments.training, prepared, watched=partial(_counted, images))
    trainer = build_trainer(arguments.model, arguments.training, prepared)
    _counted(images, trainer)
    counter = trainer.callback_of(PassCounter)
    if begins_with_probe:  # whose counts its last state holds
        _go_on(counter, probe_folder(job.work))
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer, counter


def _counted(images: int, trainer: AdversarialTrainer) -> None:
    """Let a counter of passes watch a training, from its newest checkpoint on."""
    counter = PassCounter(images)
    counter.follow(trainer.scheduler_callback, trainer.overfitting_guard)
    trainer.add_callback(counter)
    if checkpoint := newest_complete(trainer.args.output_dir, tells=False):
        _go_on(counter, Path(checkpoint))


def _go_on(counter: PassCounter, folder: Path) -> None:
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    counter.go_on_from(state["stateful_callbacks"])


def _measure(job: Job, arguments: CellArguments, prepared: PreparedRun, trainer: AdversarialTrainer) -> Report:
    args, how, task = arguments.training, job.measurement, prepared.task
    images = prepared.splits[how.split]
    if how.split == "validation":
        images = task.at_most(images, arguments.data.max_eval_samples, arguments.data.split_seed, "max_eval_samples")
    steps = {"attack_steps": args.eval_attack_steps, "attack_steps_limit": args.eval_attack_steps_limit}
    measured, own = evaluate_robustness, {"attack": args.eval_attack, **steps}
    if task.name == SEGMENTATION:
        measured = evaluate_segmentation
        own = own if how.protocol == "paper" else {}  # the others have attacks and steps of their own
        own |= {"ignore_index": prepared.known.label_for_ignored}
    report = measured(
        trainer.model,
        task.inputs(images, prepared.processor, prepared.known, "none", False),
        threat_model=args.threat_model,
        pixel_space=trainer.pixel_space,
        epsilons=args.evaluation_grid,
        protocol=how.protocol,
        checks=how.checks,
        batch_size=args.per_device_eval_batch_size,
        device=PartialState().device,
        seed=args.seed,
        results_dir=job.work / "evaluation",
        class_names=class_names(trainer.model.config),
        progress=not args.disable_tqdm,
        **own,
    )
    training, head = trainer.described_training(), ProbedHead.in_folder(probe_folder(job.work))
    facts = {**prepared.facts, **environment_facts(), "probe": None if head is None else head.facts}
    return report.with_metadata(**facts, split=how.split, training=training)


def _validation(log_history: list[dict[str, Any]], report: Report) -> dict[str, list[float]]:
    """Clean scores on validation images by epoch, and the training eps at that time."""
    measures = MEASURES[type(report)]
    entries = {entry["epoch"]: entry for entry in log_history if f"eval_{measures[0].clean}" in entry}
    scores = {each.curve: [entry[f"eval_{each.clean}"] for entry in entries.values()] for each in measures}
    return {"epochs": list(entries), **scores, "eps": [entry["eps"] for entry in entries.values()]}
