"""Kills training with SIGKILL at random moments, resumes it, and compares every bit with a run that was left alone.

    python -m hf_robust_ft.benchmarks.kill_and_resume --kills 20 --seed 0 --output kills.json

A tiny ViT with dropout trains on random images under each schedule that resumes in its own way (hinge, auto,
per_sample), with gradient accumulation, averaged weights and random starts, saving every 3 steps and keeping one
checkpoint. Half of the kills come at a random moment of a random step, half within the writing of a random checkpoint.
A run is killed and resumed three times, then comes to its end; its weights, averages, losses and eps of every step and
what its schedule remembers are compared. Exit code 1 if anything differs.

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
from transformers import TrainerCallback, ViTConfig, ViTForImageClassification, set_seed

from hf_robust_ft.attacks.pixels import PixelSpace
from hf_robust_ft.evaluation.batches import stack_examples
from hf_robust_ft.training.arguments import AdversarialTrainingArguments
from hf_robust_ft.training.base.checkpoints import STAGING, checkpoints_in, fault_of
from hf_robust_ft.training.trainer import AdversarialTrainer

SCHEDULES = {
    "hinge": {"eps_schedule": "hinge", "schedule_granularity": "step"},
    "auto": {
        "eps_schedule": "auto", "schedule_args": {"patience": 1, "tolerance": 1.0}, "eval_strategy": "epoch",
    },
    "per_sample": {"eps_schedule": "per_sample", "schedule_args": {"levels": 3}},
}  # fmt: skip
STEPS = 24  # 6 epochs of 4
SAVE_STEPS = 3
KILLS_A_RUN = 3
RESULT = "result.pt"
POLLING = 0.0005  # seconds
PATIENCE = 600.0  # seconds that a process may take


@dataclass
class Kill:
    """One kill and what it left.

    Args:
        schedule: of the run.
        run: number of the run under this schedule.
        planned: "step" or "save".
        step: optimizer steps done when it came.
        half_written: whether a checkpoint was being written.
        resumes_from: step of the newest checkpoint; 0 if it starts anew.
        incomplete: checkpoints under their final names that are not complete (0, or the rename is not safe).
    """

    schedule: str
    run: int
    planned: str
    step: int
    half_written: bool
    resumes_from: int
    incomplete: int


class Images(torch.utils.data.Dataset):
    """32 random 16 x 16 images in 4 classes, which differ in brightness."""

    def __init__(self, identified: bool):
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(32) % 4
        noise = torch.rand(32, 3, 16, 16, generator=generator)
        self.pixels = 0.2 * self.labels.view(-1, 1, 1, 1) + 0.2 * noise
        self.identified = identified

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = {"pixel_values": self.pixels[index], "labels": int(self.labels[index])}
        return example | ({"sample_id": index} if self.identified else {})


class Progress(TrainerCallback):
    """Tells the process that kills how many steps are done."""

    def __init__(self, steps_done: Any):
        self.steps_done = steps_done

    def on_train_begin(self, args, state, control, **kwargs):
        self.steps_done.value = state.global_step

    def on_step_end(self, args, state, control, **kwargs):
        self.steps_done.value = state.global_step


def build(folder: Path, schedule: str, callbacks: list | None = None, **changes: Any) -> AdversarialTrainer:
    """The trainer of a run, the same each time."""
    set_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8,
        num_labels=4, hidden_dropout_prob=0.1,
    )  # fmt: skip
    settings = {
        "num_train_epochs": 6, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "ema_decay": 0.9,
        "learning_rate": 3e-3, "eps": "8/255", "attack_steps": 2, "attack_random_start": True, "robust_eval": "no",
        "save_strategy": "steps", "save_steps": SAVE_STEPS, "save_total_limit": 1, "logging_steps": 1,
        "report_to": "none", "disable_tqdm": True, "use_cpu": True, "remove_unused_columns": False,
        "dataloader_pin_memory": False, "eval_epsilons": ["0", "8/255"],
    }  # fmt: skip
    args = AdversarialTrainingArguments(output_dir=str(folder), **(settings | SCHEDULES[schedule] | changes))
    return AdversarialTrainer(
        model=ViTForImageClassification(config),
        args=args,
        train_dataset=Images(identified=schedule == "per_sample"),
        eval_dataset=Images(identified=False),
        data_collator=stack_examples,
        callbacks=callbacks,
        pixel_space=PixelSpace(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
    )


def outcome(trainer: AdversarialTrainer) -> dict[str, Any]:
    """All that a resumed run must have in common with one that was left alone."""
    return {
        "weights": dict(trainer.model.state_dict()),
        "averages": trainer.weight_averaging.averages,
        "eps": [entry["eps"] for entry in trainer.state.log_history if "loss" in entry],
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "memory": trainer.scheduler_callback.memory,
    }


def train(folder: Path, schedule: str, steps_done: Any) -> None:
    """Train to the end from the newest checkpoint, if there is one, and leave the outcome in `folder`."""
    log = open(folder.with_suffix(".log"), "a")  # noqa: SIM115 (until the process ends)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    torch.set_num_threads(1)
    trainer = build(folder, schedule, [Progress(steps_done)])
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
        self.compared: dict[str, list[list[str]]] = {schedule: [] for schedule in SCHEDULES}
        self.whole = {schedule: self._finish(root / f"{schedule}-whole", schedule) for schedule in SCHEDULES}

    def kill_once(self, schedule: str, planned: str) -> None:
        """Start or resume the open run of a schedule and kill it; one that ends before that is compared."""
        folder = self._open_run(schedule)
        process, steps_done = self._start(folder, schedule)
        begun = max((int(path.name.split("-")[1]) for path in checkpoints_in(folder)), default=0)
        before = sum((kill.schedule, kill.run) == (schedule, self._run(schedule)) for kill in self.kills)
        step = self.random.randrange(begun, begun + max((STEPS - begun) // (KILLS_A_RUN - before), 1))
        if planned == "step":
            self._wait(process, lambda: steps_done.value >= step)
            time.sleep(self.random.uniform(0, 0.1))
        else:
            staging = folder / STAGING
            self._wait(process, lambda: steps_done.value >= step and staging.is_dir())
            time.sleep(self.random.uniform(0, 0.02))
        alive = process.is_alive()
        process.kill()
        process.join()
        if (folder / RESULT).is_file():
            self._compare(schedule, folder)
        elif alive:
            self.kills.append(self._look(schedule, folder, planned, steps_done.value))
            if before + 1 == KILLS_A_RUN:
                self._finish(folder, schedule)
                self._compare(schedule, folder)
        else:
            raise RuntimeError(_ended(folder, process))

    def finish(self) -> None:
        """Let every open run come to its end, and compare it."""
        for schedule in SCHEDULES:
            folder = self._open_run(schedule)
            if folder.is_dir():
                self._finish(folder, schedule)
                self._compare(schedule, folder)

    def _open_run(self, schedule: str) -> Path:
        return self.root / f"{schedule}-{self._run(schedule)}"

    def _run(self, schedule: str) -> int:
        return len(self.compared[schedule])

    def _start(self, folder: Path, schedule: str) -> tuple[Any, Any]:
        steps_done = self.context.Value("i", 0, lock=False)
        process = self.context.Process(target=train, args=(folder, schedule, steps_done))
        process.start()
        return process, steps_done

    def _wait(self, process: Any, moment: Any) -> None:
        deadline = time.monotonic() + PATIENCE
        while process.is_alive() and not moment() and time.monotonic() < deadline:
            time.sleep(POLLING)

    def _finish(self, folder: Path, schedule: str) -> dict[str, Any]:
        process, _ = self._start(folder, schedule)
        process.join(PATIENCE)
        if process.exitcode != 0:
            process.kill()
            raise RuntimeError(_ended(folder, process))
        return torch.load(folder / RESULT, weights_only=True)

    def _look(self, schedule: str, folder: Path, planned: str, step: int) -> Kill:
        faults = {path: fault_of(path) for path in checkpoints_in(folder)}
        complete = [int(path.name.split("-")[1]) for path, fault in faults.items() if fault is None]
        return Kill(
            schedule=schedule,
            run=self._run(schedule),
            planned=planned,
            step=step,
            half_written=any((folder / STAGING).glob("checkpoint-*")),
            resumes_from=max(complete, default=0),
            incomplete=len(faults) - len(complete),
        )

    def _compare(self, schedule: str, folder: Path) -> None:
        found = torch.load(folder / RESULT, weights_only=True)
        self.compared[schedule].append(differences(self.whole[schedule], found))
        shutil.rmtree(folder)


def _ended(folder: Path, process: Any) -> str:
    last = folder.with_suffix(".log").read_text(encoding="utf-8")[-2000:]
    return f"The run in {folder.name} ended by itself with exit code {process.exitcode}: {last}"


def markdown_table(kills: list[Kill], compared: dict[str, list[list[str]]]) -> str:
    """Kills and outcomes by schedule."""
    lines = [
        "| schedule | kills | in a step | while saving | left half a checkpoint | runs compared | bitwise equal |",
        "|---|---|---|---|---|---|---|",
    ]
    for schedule, runs in compared.items():
        own = [kill for kill in kills if kill.schedule == schedule]
        at_save = sum(kill.planned == "save" for kill in own)
        half, equal = sum(kill.half_written for kill in own), sum(not each for each in runs)
        cells = (schedule, len(own), len(own) - at_save, at_save, half, len(runs), equal)
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
        turns = [(schedule, planned) for planned in ("step", "save") for schedule in SCHEDULES]
        while len(runs.kills) < options.kills:
            runs.kill_once(*turns[len(runs.kills) % len(turns)])
            print(f"{len(runs.kills)} of {options.kills} kills", flush=True)
        runs.finish()
    print(markdown_table(runs.kills, runs.compared))
    wrong = {schedule: found for schedule, found in runs.compared.items() if any(found)}
    if options.output:
        result = {"seed": options.seed, "kills": [asdict(kill) for kill in runs.kills], "differences": wrong}
        result["compared"] = {schedule: len(found) for schedule, found in runs.compared.items()}
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if wrong:
        sys.exit(f"Resumed runs differ: {wrong}")


if __name__ == "__main__":
    main()
