"""Kills training with SIGKILL at random moments, resumes it, and compares every bit with a run that was left alone.

    python -m hf_robust_ft.benchmarks.kill_and_resume --kills 20 --seed 0 --output kills.json

A tiny network (a ViT with dropout; a ResNet for TWINS) trains on random images under each schedule that resumes in its
own way, each objective, with mixed images, and after a probe of its head (`killed_runs`), saving every 3 steps and
keeping one checkpoint. Half of the kills come at a random moment of a random step, of the probe too, half within the
writing of a random checkpoint. A run is killed and resumed three times, then comes to its end; its weights, averages,
losses and eps of every step, what its schedule remembers and the probed head are compared. Exit code 1 if anything
differs.

Needs fork (not Windows): processes share one import of torch. On CPU; minutes on 2 cores.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from hf_robust_ft.benchmarks.killed_runs import SETTINGS, STEPS, build, saved_in, steps_before
from hf_robust_ft.training.base.checkpoints import STAGING, checkpoints_in, fault_of
from hf_robust_ft.training.objectives.hidden import hidden_tensors
from hf_robust_ft.training.probed_head import ProbedHead, probe_folder
from hf_robust_ft.training.trainer import AdversarialTrainer

KILLS_A_RUN = 3
RESULT = "result.pt"
POLLING = 0.0005  # seconds
PATIENCE = 600.0  # seconds that a process may take


@dataclass
class Kill:
    """One kill and what it left.

    Args:
        setting: of the run.
        run: number of the run under this setting.
        planned: "step" or "save".
        step: optimizer steps done when it came.
        half_written: whether a checkpoint was being written.
        resumes_from: step of the newest checkpoint; 0 if it starts anew.
        incomplete: checkpoints under their final names that are not complete (0, or the rename is not safe).
    """

    setting: str
    run: int
    planned: str
    step: int
    half_written: bool
    resumes_from: int
    incomplete: int


class Progress(TrainerCallback):
    """Tells the process that kills how many steps are done."""

    def __init__(self, steps_done: Any, before: int):
        self.steps_done, self.before = steps_done, before

    def on_train_begin(self, args, state, control, **kwargs):
        self.steps_done.value = self.before + state.global_step

    def on_step_end(self, args, state, control, **kwargs):
        self.steps_done.value = self.before + state.global_step


def outcome(trainer: AdversarialTrainer) -> dict[str, Any]:
    """All that a resumed run must have in common with one that was left alone."""
    head = ProbedHead.in_folder(probe_folder(trainer.args.output_dir))
    return {
        "weights": dict(trainer.model.state_dict()),
        "hidden": hidden_tensors(trainer.model),
        "averages": trainer.weight_averaging.averages,
        "eps": [entry["eps"] for entry in trainer.state.log_history if "loss" in entry],
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "memory": trainer.scheduler_callback.memory,
        "head": None if head is None else head.tensors,
    }


def train(folder: Path, setting: str, steps_done: Any) -> None:
    """Train to the end from the newest checkpoint, if there is one, and leave the outcome in `folder`."""
    log = open(folder.with_suffix(".log"), "a")  # noqa: SIM115 (until the process ends)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    torch.set_num_threads(1)
    trainer = build(folder, setting, lambda before: [Progress(steps_done, before)])
    trainer.train(resume_from_checkpoint=bool(checkpoints_in(folder)))
    part = folder / f"{RESULT}.part"
    torch.save(outcome(trainer), part)
    part.replace(folder / RESULT)


def differences(first: Any, second: Any, name: str = "") -> list[str]:
    """The names of what is not the same to the bit."""
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        return [each for key in first for each in differences(first[key], second[key], f"{name}{key}.")]
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return [] if torch.equal(first, second) else [name]
    return [] if first == second else [name]


class Runs:
    """Starts, kills and compares runs, each in a folder of its own."""

    def __init__(self, root: Path, seed: int):
        self.root, self.random = root, random.Random(seed)
        self.context = multiprocessing.get_context("fork")
        self.kills: list[Kill] = []
        self.compared: dict[str, list[list[str]]] = {setting: [] for setting in SETTINGS}
        self.whole = {setting: self._finish(root / f"{setting}-whole", setting) for setting in SETTINGS}

    def kill_once(self, setting: str, planned: str) -> None:
        """Start or resume the open run of a setting and kill it; one that ends before that is compared."""
        folder = self._open_run(setting)
        process, steps_done = self._start(folder, setting)
        begun, end = max(saved_in(folder, setting).values(), default=0), steps_before(setting) + STEPS
        before = sum((kill.setting, kill.run) == (setting, self._run(setting)) for kill in self.kills)
        step = self.random.randrange(begun, begun + max((end - begun) // (KILLS_A_RUN - before), 1))
        if planned == "step":
            self._wait(process, lambda: steps_done.value >= step)
            time.sleep(self.random.uniform(0, 0.1))
        else:
            self._wait(process, lambda: steps_done.value >= step and any(each.is_dir() for each in _staging(folder)))
            time.sleep(self.random.uniform(0, 0.02))
        alive = process.is_alive()
        process.kill()
        process.join()
        if (folder / RESULT).is_file():
            self._compare(setting, folder)
        elif alive:
            self.kills.append(self._look(setting, folder, planned, steps_done.value))
            if before + 1 == KILLS_A_RUN:
                self._finish(folder, setting)
                self._compare(setting, folder)
        else:
            raise RuntimeError(_ended(folder, process))

    def finish(self) -> None:
        """Let every open run come to its end, and compare it."""
        for setting in SETTINGS:
            folder = self._open_run(setting)
            if folder.is_dir():
                self._finish(folder, setting)
                self._compare(setting, folder)

    def _open_run(self, setting: str) -> Path:
        return self.root / f"{setting}-{self._run(setting)}"

    def _run(self, setting: str) -> int:
        return len(self.compared[setting])

    def _start(self, folder: Path, setting: str) -> tuple[Any, Any]:
        steps_done = self.context.Value("i", 0, lock=False)
        process = self.context.Process(target=train, args=(folder, setting, steps_done))
        process.start()
        return process, steps_done

    def _wait(self, process: Any, moment: Any) -> None:
        deadline = time.monotonic() + PATIENCE
        while process.is_alive() and not moment() and time.monotonic() < deadline:
            time.sleep(POLLING)

    def _finish(self, folder: Path, setting: str) -> dict[str, Any]:
        process, _ = self._start(folder, setting)
        process.join(PATIENCE)
        if process.exitcode != 0:
            process.kill()
            raise RuntimeError(_ended(folder, process))
        return torch.load(folder / RESULT, weights_only=True)

    def _look(self, setting: str, folder: Path, planned: str, step: int) -> Kill:
        saved = saved_in(folder, setting)
        complete = [steps for path, steps in saved.items() if fault_of(path) is None]
        return Kill(
            setting=setting,
            run=self._run(setting),
            planned=planned,
            step=step,
            half_written=any(each for place in _staging(folder) for each in place.glob("checkpoint-*")),
            resumes_from=max(complete, default=0),
            incomplete=len(saved) - len(complete),
        )

    def _compare(self, setting: str, folder: Path) -> None:
        found = torch.load(folder / RESULT, weights_only=True)
        self.compared[setting].append(differences(self.whole[setting], found))
        shutil.rmtree(folder)


def _staging(folder: Path) -> list[Path]:
    """Where checkpoints of either phase are written."""
    return [folder / STAGING, probe_folder(folder) / STAGING]


def _ended(folder: Path, process: Any) -> str:
    last = folder.with_suffix(".log").read_text(encoding="utf-8")[-2000:]
    return f"The run in {folder.name} ended by itself with exit code {process.exitcode}: {last}"


def markdown_table(kills: list[Kill], compared: dict[str, list[list[str]]]) -> str:
    """Kills and outcomes by setting."""
    lines = [
        "| setting | kills | in a step | while saving | left half a checkpoint | runs compared | bitwise equal |",
        "|---|---|---|---|---|---|---|",
    ]
    for setting, runs in compared.items():
        own = [kill for kill in kills if kill.setting == setting]
        at_save = sum(kill.planned == "save" for kill in own)
        half, equal = sum(kill.half_written for kill in own), sum(not each for each in runs)
        cells = (setting, len(own), len(own) - at_save, at_save, half, len(runs), equal)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    """Kill, resume, compare; print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="Of the moments of the kills.")
    parser.add_argument("--output", type=Path, help="Write kills and outcomes to this JSON file.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        runs = Runs(Path(root), options.seed)
        turns = [(setting, planned) for planned in ("step", "save") for setting in SETTINGS]
        while len(runs.kills) < options.kills:
            runs.kill_once(*turns[len(runs.kills) % len(turns)])
            print(f"{len(runs.kills)} of {options.kills} kills", flush=True)
        runs.finish()
    print(markdown_table(runs.kills, runs.compared))
    wrong = {setting: found for setting, found in runs.compared.items() if any(found)}
    if options.output:
        result = {"seed": options.seed, "kills": [asdict(kill) for kill in runs.kills], "differences": wrong}
        result["compared"] = {setting: len(found) for setting, found in runs.compared.items()}
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if wrong:
        sys.exit(f"Resumed runs differ: {wrong}")


if __name__ == "__main__":
    main()
