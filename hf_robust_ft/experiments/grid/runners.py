"""What runs a grid's cells: this process, one launched command each, a Ray cluster, or nothing."""

import json
import shlex
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from hf_robust_ft.experiments.grid.arguments import GridArguments
from hf_robust_ft.experiments.grid.cells import Job
from hf_robust_ft.experiments.grid.results import MeasuredCell
from hf_robust_ft.experiments.grid.run_cell import CellInProgress, attempt_cell, is_in_progress, record_failure


class Outcome(NamedTuple):
    """What became of a cell that was left to run.

    Args:
        job: it.
        result: None where it failed, was not run, or is run by another process.
        in_progress: whether another process is at it.
    """

    job: Job
    result: MeasuredCell | None
    in_progress: bool = False

    @property
    def reason(self) -> str:
        """Why there is no result, in one line."""
        if self.in_progress:
            return "another process is at it"
        return self.job.failure_reason if self.job.failure.is_file() else "not run"


Runner = Callable[[Sequence[Job], GridArguments], Iterator[Outcome]]


def run_in_process(jobs: Sequence[Job], options: GridArguments) -> Iterator[Outcome]:
    """One cell after the other, here."""
    for job in jobs:
        try:
            yield Outcome(job, attempt_cell(job, keeps_checkpoint=options.keep_checkpoints))
        except CellInProgress:
            yield Outcome(job, None, in_progress=True)


def run_launched(jobs: Sequence[Job], options: GridArguments) -> Iterator[Outcome]:
    """One command a cell, on as many processes and devices as the launcher starts; its output goes to `logs/`."""
    launcher = shlex.split(options.launcher)
    for job in jobs:
        if is_in_progress(job):
            yield Outcome(job, None, in_progress=True)
            continue
        log = job.failure.parent.parent / "logs" / f"{job.cell.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        job.failure.unlink(missing_ok=True)
        command = [*launcher, "-m", "hf_robust_ft.experiments.grid.cell_process", json.dumps(job.to_dict())]
        command += ["--keeps_checkpoint"] if options.keep_checkpoints else []
        with open(log, "w", encoding="utf-8") as output:
            try:
                code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
            except OSError as error:
                raise ValueError(f"The launcher {options.launcher!r} cannot be started: {error}.") from None
        if job.result.is_file() and code == 0:
            yield Outcome(job, MeasuredCell.from_json(job.result))
            continue
        if not job.failure.is_file():  # killed, or the launcher itself failed
            record_failure(job, f"{launcher[0]} ended with exit code {code}; see logs/{log.name}")
        yield Outcome(job, None)


def run_on_ray(jobs: Sequence[Job], options: GridArguments) -> Iterator[Outcome]:
    """As many cells at a time as the cluster has room for, in the order in which they end.

    The cells' folders are on disks that all machines of the cluster share, or cells do not resume on another machine.

    Raises:
        ImportError: ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise ImportError("--runner ray needs Ray: pip install 'hf_robust_ft[ray]'.") from None
    with _connected(options):
        remote = ray.remote(num_cpus=options.ray_cpus, num_gpus=options.ray_gpus, max_retries=0)(_run_remotely)
        pending = {remote.remote(job.to_dict(), options.keep_checkpoints): job for job in jobs}
        try:
            while pending:
                done, _ = ray.wait(list(pending), num_returns=1)
                job = pending.pop(done[0])
                try:
                    content, failure = ray.get(done[0])
                except ray.exceptions.RayError as error:  # the worker died
                    content, failure = None, f"{type(error).__name__}: {error}"
                yield _collected(job, content, failure)
        finally:
            for waiting in pending:
                ray.cancel(waiting)


def run_none(jobs: Sequence[Job], options: GridArguments) -> Iterator[Outcome]:
    """None of them: for the tables of cells that others run, as the tasks of a job array."""
    for job in jobs:
        yield Outcome(job, None, in_progress=is_in_progress(job))


@contextmanager
def _connected(options: GridArguments) -> Iterator[None]:
    """To the caller's own Ray where there is one, else to one that ends with the grid."""
    import ray

    if ray.is_initialized():
        yield
        return
    # Ray takes SIGTERM and keeps it: a training later in this process would not save and end by it.
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=options.ray_address, log_to_driver=False, include_dashboard=False)
        yield
    finally:
        ray.shutdown()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _run_remotely(job: dict[str, Any], keeps_checkpoint: bool) -> tuple[str | None, str | None]:
    """A cell on a machine of the cluster: its file's text, or why there is none ("" for in progress)."""
    job = Job.from_dict(job)
    try:
        if attempt_cell(job, keeps_checkpoint=keeps_checkpoint) is None:
            return None, job.failure.read_text(encoding="utf-8")
    except CellInProgress:
        return None, ""
    return job.result.read_text(encoding="utf-8"), None


def _collected(job: Job, content: str | None, failure: str | None) -> Outcome:
    """A cell that ran elsewhere, with its files here as well."""
    if content is not None:
        if not job.result.is_file():
            job.result.parent.mkdir(parents=True, exist_ok=True)
            job.result.write_text(content, encoding="utf-8")
        return Outcome(job, MeasuredCell.from_json(job.result))
    if failure == "":
        return Outcome(job, None, in_progress=True)
    first, _, details = failure.partition("\n")
    record_failure(job, first, details.strip())
    return Outcome(job, None)


RUN: dict[str, Runner] = {"in_process": run_in_process, "launch": run_launched, "ray": run_on_ray, "none": run_none}
