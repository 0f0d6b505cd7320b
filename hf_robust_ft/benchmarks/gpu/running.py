"""Each section in a process of its own, within its share of the time: none can take another's, or break it."""

import gc
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import torch

from hf_robust_ft.benchmarks.gpu.cases import Setup
from hf_robust_ft.benchmarks.gpu.sections import SECTIONS

SHORTEST = 1.0  # seconds; a section that has less is not begun
Row = dict[str, Any]


def run_sections(
    setup: Setup, seconds: float, names: Sequence[str], note: Callable[[list[Row]], None] = lambda rows: None
) -> list[Row]:
    """The rows of all sections: what was measured, and what was not and why.

    What a section leaves of its share is for those after it.

    Args:
        seconds: for all of them together.
        names: keys of `SECTIONS`.
        note: called with the rows so far after each section.
    """
    rows, deadline = [], time.monotonic() + seconds
    for index, name in enumerate(names):
        left = deadline - time.monotonic()
        share = left * SECTIONS[name].share / sum(SECTIONS[each].share for each in names[index:])
        if share < SHORTEST:
            rows.append({"section": name, "error": "not begun: the time was up"})
        else:
            rows += run_section(setup, name, share)
        note(rows)
    return rows


def run_section(setup: Setup, name: str, seconds: float) -> list[Row]:
    """One section in a new process, which is ended after `seconds`; rows it had sent by then stay."""
    # CUDA does not survive a fork; without it a fork spares the imports.
    context = multiprocessing.get_context("spawn" if setup.device == "cuda" else "fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(setup, name, sender))
    begun = time.monotonic()
    process.start()
    sender.close()
    rows: list[Row] = []
    at: Row = {"section": name}
    try:
        while receiver.poll(max(begun + seconds - time.monotonic(), 0)):
            message = receiver.recv()
            if message.keys() & {"figures", "error"}:
                rows.append(message)
                at = {"section": name}
            else:
                at = message
        rows.append({**at, "error": f"stopped at the section's limit of {seconds:.0f} s"})
    except EOFError:
        process.join()
        if process.exitcode:
            rows.append({**at, "error": f"the process ended with status {process.exitcode}"})
    finally:
        _end(process)
        receiver.close()
    return rows


def _end(process: multiprocessing.process.BaseProcess) -> None:
    """With what it started."""
    if process.is_alive():
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has not yet come to be the first of its group
            process.kill()
    process.join()


def _work(setup: Setup, name: str, sender: Connection) -> None:
    """Measure case by case; what one raises is its row."""
    os.setsid()
    os.dup2(2, 1)  # the table is to have standard output for itself
    if setup.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with suppress(BrokenPipeError):
        try:
            for model, setting, measure in SECTIONS[name].cases(setup):
                at = {"section": name, "model": model, "setting": setting}
                sender.send(at)
                begun = time.monotonic()
                outcome = _outcome(measure)
                sender.send({**at, **outcome, "seconds": round(time.monotonic() - begun, 2)})
                _forget(setup)
        except Exception as error:
            sender.send({"section": name, **_told(error)})
    sender.close()


def _outcome(measure: Callable[[], Row]) -> Row:
    try:
        return {"figures": measure()}
    except Exception as error:
        return _told(error)


def _told(error: Exception) -> Row:
    first_line = next(iter(str(error).splitlines()), "")
    return {"error": f"{type(error).__name__}: {first_line}", "traceback": traceback.format_exc()}


def _forget(setup: Setup) -> None:
    """Of one case nothing stays for the next: no memory, and no compiled graph."""
    torch.compiler.reset()
    gc.collect()
    if setup.device == "cuda":
        torch.cuda.empty_cache()
