"""What adversarial training costs: over plain training, over its bare passes, beside a plain PyTorch loop.

    python -m hf_robust_ft.benchmarks.training_cost --threads 2 --output training_cost.json

Ratios of times of one round, in which the tools take turns (median, least, largest):

- `eps0`: a step at eps = 0 and its wait for data, over transformers' Trainer in the same memory format; and the
  share of that time spent waiting for data.
- `limit`: a step at the full eps over what it cannot do without: 7 input gradients and one forward of a frozen model in
  evaluation mode, and one training step, in the same memory format.
- `runs`: whole runs of the same epochs on the same few images: a loop that does RFT-fix with torchattacks' APGD-7,
  over ours with hinge, and with the recipe `fast`. Each ends its epochs; nothing is computed from a step's cost.
- `memory`: MiB by which one step raises the memory in use at its peak, in a fresh process (see `attack_cost`).
- `compile`: graphs that `torch_compile` makes while eps, attack steps and modes change, and how many of them after
  the first attacked step.
- `quickstart` (only when asked for): the whole example, once a seed: the loop, hinge and fast, and how robust each is.

The models are a pretrained EfficientNet-Lite0 and a ViT-tiny, warmed up on the clean images: torchattacks skips images
that are wrong already (the share that it attacks is reported), while ours attacks all. torchattacks is in the extra
`bench`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import TrainerCallback

from hf_robust_ft.attacks.pixels import PixelClassifier
from hf_robust_ft.attacks.threat_model import ThreatModel
from hf_robust_ft.benchmarks.attack_cost import PEAK_RESET, _peak_kib, positive
from hf_robust_ft.benchmarks.plain_loop import fine_tune_in_a_loop
from hf_robust_ft.benchmarks.training_subjects import MODELS, Subject, load_subject
from hf_robust_ft.evaluation.evaluate import evaluate_robustness
from hf_robust_ft.runs.recipes import read_recipe
from hf_robust_ft.training.arguments import AdversarialTrainingArguments

SECTIONS = ("eps0", "limit", "runs", "memory", "compile")
TARGETS = {"eps0": 1.02, "limit": 1.05, "hinge": {"efficientnet_lite0": 2.0, "vit_tiny": 1.6}, "fast": 4.0}
STEPS = 7
FULL = {"eps_schedule": "constant"}
NOTHING = {"eps": "0"}


class StepClock(TrainerCallback):
    """Seconds of each step, and of the wait for the next batch, from the second step on."""

    def __init__(self):
        self.steps: list[float] = []
        self.waits: list[float] = []
        self.begun = self.ended = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.ended = 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        self.begun = now()
        if self.ended:
            self.waits.append(self.begun - self.ended)

    def on_step_end(self, args, state, control, **kwargs):
        ended = now()
        if self.ended:
            self.steps.append(ended - self.begun)
        self.ended = ended


CLOCK = {"read": time.perf_counter}


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return CLOCK["read"]()


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def in_turn(tools: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[Any]]:
    """What every tool returns in every round; each round starts with another tool."""
    names, found = list(tools), {name: [] for name in tools}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(tools[name]())
    return found


# ---- A step ------------------------------------------------------------------------


@dataclass
class TimedTrainer:
    """A Trainer that is run for a few steps at a time."""

    trainer: Any
    clock: StepClock

    def __call__(self) -> tuple[float, float]:
        """Median seconds of a step and of a wait for data, over one short training."""
        self.clock.steps, self.clock.waits = [], []
        self.trainer.train()
        return statistics.median(self.clock.steps), statistics.median(self.clock.waits)


def timed(make: Callable[..., Any], **changes: Any) -> TimedTrainer:
    clock = StepClock()
    return TimedTrainer(make(callbacks=[clock], **changes), clock)


def measure_eps0(subject: Subject, options: argparse.Namespace) -> dict:
    tools = {
        "ours": timed(subject.adversarial_trainer, max_steps=options.steps_a_round, **NOTHING),
        "plain": timed(subject.plain_trainer, max_steps=options.steps_a_round),
        "plain, contiguous": timed(subject.plain_trainer, memory_format="contiguous", max_steps=options.steps_a_round),
    }
    in_turn(tools, 1)
    found = in_turn(tools, options.rounds)
    whole = {name: [sum(each) for each in rounds] for name, rounds in found.items()}
    return {
        "seconds a step": {name: statistics.median(values) for name, values in whole.items()},
        "ratio": spread([own / plain for own, plain in zip(whole["ours"], whole["plain"], strict=True)]),
        "ratio to contiguous": spread(
            [own / plain for own, plain in zip(whole["ours"], whole["plain, contiguous"], strict=True)]
        ),
        "share waiting for data": spread([wait / (step + wait) for step, wait in found["ours"]]),
    }


class BareSteps:
    """The limit of a step at the full eps, with nothing around it.

    Args:
        passes: training passes, of one loss after the other, before the one backward pass.
        forwards: without a gradient.
        memory_format: of the weights.
        gradients: of the pixels.
        parts: of the batch, each with training passes of its own.
    """

    def __init__(
        self,
        subject: Subject,
        count: int,
        passes: int = 1,
        forwards: int = 1,
        memory_format: str = "auto",
        gradients: int = STEPS,
        parts: int = 1,
    ):
        space, self.count = subject.pixel_space, count
        self.passes, self.forwards, self.gradients, self.parts = passes, forwards, gradients, parts
        self.trained = PixelClassifier(subject.fresh_model(memory_format).train(), space)
        self.attacked = PixelClassifier(subject.fresh_model(memory_format).eval().requires_grad_(False), space)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.trained.to(device), self.attacked.to(device)
        batch = next(iter(subject.loader()))
        self.pixels = space.clipped_pixels(batch["pixel_values"]).to(device)
        self.labels = batch["labels"].to(device)
        self.optimizer = torch.optim.AdamW(self.trained.parameters(), lr=1e-5, fused=True)

    def step(self) -> None:
        for _ in range(self.gradients):
            x = self.pixels.detach().requires_grad_()
            torch.autograd.grad(F.cross_entropy(self.attacked(x), self.labels, reduction="sum"), x)
        with torch.no_grad():
            for _ in range(self.forwards):
                self.attacked(self.pixels)
        losses = [
            F.cross_entropy(self.trained(pixels), labels)
            for pixels, labels in zip(self.pixels.chunk(self.parts), self.labels.chunk(self.parts), strict=True)
            for _ in range(self.passes)
        ]
        sum(losses).backward()
        torch.nn.utils.clip_grad_norm_(self.trained.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def __call__(self) -> float:
        seconds = []
        for _ in range(self.count):
            begun = now()
            self.step()
            seconds.append(now() - begun)
        return statistics.median(seconds[1:])


def measure_limit(subject: Subject, options: argparse.Namespace) -> dict:
    tools = {
        "ours": timed(subject.adversarial_trainer, max_steps=options.steps_a_round, attack_steps=STEPS, **FULL),
        "limit": BareSteps(subject, options.steps_a_round),
    }
    in_turn(tools, 1)
    found = in_turn(tools, options.rounds)
    ours = [step for step, _ in found["ours"]]
    return {
        "seconds a step": {"ours": statistics.median(ours), "limit": statistics.median(found["limit"])},
        "ratio": spread([own / limit for own, limit in zip(ours, found["limit"], strict=True)]),
    }


# ---- Whole runs --------------------------------------------------------------------


def run_loop(subject: Subject, epochs: int, learning_rate: float = 1e-5, seed: int = 0) -> dict:
    model = subject.fresh_model().to("cuda" if torch.cuda.is_available() else "cpu")
    begun = now()
    done = fine_tune_in_a_loop(
        model,
        subject.pixel_space,
        subject.loader(seed),
        ThreatModel("Linf", subject.eps),
        epochs=epochs,
        learning_rate=learning_rate,
        attack_steps=STEPS,
    )
    return {"seconds": now() - begun, "steps": done.steps, "images attacked": done.attacked, "model": model}


def run_trainer(subject: Subject, **settings: Any) -> dict:
    trainer = subject.adversarial_trainer(**settings)
    begun = now()
    trainer.train()
    seconds = now() - begun
    guard = trainer.overfitting_guard
    fell_back = None if guard is None else guard.fell_back_at
    return {"seconds": seconds, "steps": trainer.state.global_step, "fell back at": fell_back, "model": trainer.model}


def measure_runs(subject: Subject, options: argparse.Namespace) -> dict:
    epochs = options.epochs
    tools = {
        "loop": lambda: run_loop(subject, epochs),
        "hinge": lambda: run_trainer(subject, num_train_epochs=epochs, attack_steps=STEPS),
        "fast": lambda: run_trainer(subject, num_train_epochs=epochs, **read_recipe("fast")),
    }
    found = in_turn(tools, options.run_rounds)
    seconds = {name: [run["seconds"] for run in runs] for name, runs in found.items()}
    return {
        "epochs": epochs,
        "steps": {name: runs[0]["steps"] for name, runs in found.items()},
        "seconds": seconds,
        "images the loop attacked": statistics.mean(run["images attacked"] for run in found["loop"]),
        "fast fell back at": [run["fell back at"] for run in found["fast"]],
        "speed-up": {
            name: spread([loop / own for loop, own in zip(seconds["loop"], seconds[name], strict=True)])
            for name in ("hinge", "fast")
        },
    }


def measure_quickstart(subject: Subject, options: argparse.Namespace) -> dict:
    """The whole example from an untrained head, at its own learning rate: how long and how robust, once a seed."""
    recipe = read_recipe("quickstart")
    epochs, learning_rate = recipe["num_train_epochs"], float(recipe["learning_rate"])
    settings = {
        "num_train_epochs": epochs,
        "learning_rate": learning_rate,
        "weight_decay": recipe["weight_decay"],
        "warmup_steps": recipe["warmup_steps"],
        "eps": recipe["eps"],
    }
    target = AdversarialTrainingArguments("unused", eps=recipe["eps"], eval_epsilons=recipe["eval_epsilons"])
    found: dict[str, dict] = {}
    for seed in options.seeds:
        fresh = load_subject("efficientnet_lite0", warm_up=False, seed=seed)
        tools = {
            "loop": lambda s=fresh, n=seed: run_loop(s, epochs, learning_rate, n),
            "hinge": lambda s=fresh, n=seed: run_trainer(s, seed=n, attack_steps=STEPS, **settings),
            "fast": lambda s=fresh, n=seed: run_trainer(s, seed=n, **(settings | read_recipe("fast"))),
        }
        for name, tool in tools.items():
            done = tool()
            report = evaluate_robustness(
                done.pop("model"),
                fresh.test,
                threat_model=target.threat_model,
                pixel_space=fresh.pixel_space,
                epsilons=target.evaluation_grid,
                attack=target.eval_attack,
                checks=False,
            )
            scores = ("clean_accuracy", "adversarial_accuracy", "expected_robustness")
            found.setdefault(name, {})[seed] = done | {score: getattr(report, score) for score in scores}
            print(f"quickstart {name}, seed {seed}: {found[name][seed]}", file=sys.stderr, flush=True)
    return found


# ---- Memory and compilation ----------------------------------------------------------

MEMORY = {
    "plain Trainer": None,
    "ours, eps = 0": NOTHING,
    "ours, full eps": FULL,
    "fast, full eps": FULL,
    "ours, full eps, activation checkpointing": {**FULL, "activation_checkpointing": True},
    "loop": None,
}


class PeakOfLastStep(TrainerCallback):
    """MiB by which the last step raised the memory in use."""

    def begin(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated() / 2**20
        else:
            PEAK_RESET.write_text("5")
            self.before = _peak_kib() / 2**10

    @property
    def rise(self) -> float:
        peak = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else _peak_kib() / 2**10
        return peak - self.before

    def on_step_begin(self, args, state, control, **kwargs):
        self.begin()


def memory_of(kind: str, subject: Subject) -> float:
    peak = PeakOfLastStep()
    if kind == "loop":
        space, threat_model = subject.pixel_space, ThreatModel("Linf", subject.eps)
        fine_tune_in_a_loop(subject.fresh_model(), space, subject.loader(), threat_model, epochs=1, learning_rate=1e-5,
                            on_step=peak.begin)  # fmt: skip
    elif kind == "plain Trainer":
        subject.plain_trainer(callbacks=[peak], num_train_epochs=1).train()
    else:
        settings = MEMORY[kind] | (read_recipe("fast") if kind.startswith("fast") else {"attack_steps": STEPS})
        subject.adversarial_trainer(callbacks=[peak], num_train_epochs=1, **(settings | MEMORY[kind])).train()
    return peak.rise


def measure_memory(subject: Subject, options: argparse.Namespace) -> dict | None:
    if not torch.cuda.is_available() and not PEAK_RESET.exists():
        return None
    # glibc otherwise keeps freed tensors of up to 32 MiB, and the peak counts them.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    found = {}
    for kind in MEMORY:
        if "checkpointing" in kind and subject.name != "vit_tiny":  # timm's wrapper of Lite0 has none
            continue
        command = [sys.executable, "-m", "hf_robust_ft.benchmarks.training_cost", "--memory-of", kind]
        command += ["--models", subject.name, "--threads", str(options.threads)]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        found[kind] = float(done.stdout.splitlines()[-1])
    return found


def measure_compile(subject: Subject, options: argparse.Namespace) -> dict:
    """Graphs of a short run with a ramp of eps and of attack steps; "aot_eager" traces as any backend does."""
    import torch._dynamo
    from torch._dynamo.utils import counters

    class Count(TrainerCallback):
        def __init__(self):
            self.graphs = []

        def on_step_end(self, args, state, control, **kwargs):
            self.graphs.append(counters["stats"]["unique_graphs"])

    torch._dynamo.reset()
    counters.clear()
    count = Count()
    trainer = subject.adversarial_trainer(
        callbacks=[count], max_steps=8, schedule_granularity="step", attack_steps=3, attack_steps_schedule="hinge",
        torch_compile=True, torch_compile_backend="aot_eager", dataloader_drop_last=True,
    )  # fmt: skip
    eps = [trainer.scheduler_callback.peak_eps * trainer.scheduler_callback.alpha(step / 8, step) for step in range(8)]
    trainer.train()
    torch._dynamo.reset()
    first = next(index for index, value in enumerate(eps) if value > 0)
    return {
        "graphs": count.graphs[-1],
        "after the first attacked step": count.graphs[-1] - count.graphs[first],
        "different eps": len({value for value in eps if value > 0}),
    }


# ---- Report --------------------------------------------------------------------------

MEASURES = {
    "eps0": measure_eps0,
    "limit": measure_limit,
    "runs": measure_runs,
    "memory": measure_memory,
    "compile": measure_compile,
    "quickstart": measure_quickstart,
}


def shown(ratio: dict[str, float], target: float, at_most: bool) -> str:
    met = ratio["median"] <= target if at_most else ratio["median"] >= target
    bound = f"{'≤' if at_most else '≥'} {target:g}"
    return f"{ratio['median']:.3f} ({ratio['min']:.3f}..{ratio['max']:.3f}) | {bound} | {'met' if met else 'missed'}"


def markdown(report: dict) -> str:
    """The ratios, then memory, then what else was counted."""
    lines = ["| model | what | ratio: median (least..largest) | target | |", "|---|---|---|---|---|"]
    memory = ["", "| model | setting | memory of a step (MiB) |", "|---|---|---|"]
    notes = [""]
    for name, found in report["models"].items():
        if "eps0" in found:
            ratio = shown(found["eps0"]["ratio"], TARGETS["eps0"], at_most=True)
            lines.append(f"| {name} | step at eps = 0 / plain Trainer | {ratio} |")
            other, waits = found["eps0"]["ratio to contiguous"], found["eps0"]["share waiting for data"]
            notes.append(
                f"{name}: a step at eps = 0 takes {other['median']:.2f} of plain Trainer's with contiguous weights; "
                f"{100 * waits['median']:.1f} % of it waits for data."
            )
        if "limit" in found:
            ratio = shown(found["limit"]["ratio"], TARGETS["limit"], at_most=True)
            lines.append(f"| {name} | step at full eps / bare passes | {ratio} |")
        if "runs" in found:
            speed = found["runs"]["speed-up"]
            lines.append(f"| {name} | loop / hinge | {shown(speed['hinge'], TARGETS['hinge'][name], at_most=False)} |")
            lines.append(f"| {name} | loop / fast | {shown(speed['fast'], TARGETS['fast'], at_most=False)} |")
            share = 100 * found["runs"]["images the loop attacked"]
            notes.append(f"{name}: the loop attacked {share:.0f} % of its images; ours attack all.")
        memory += [f"| {name} | {kind} | {mib:.0f} |" for kind, mib in (found.get("memory") or {}).items()]
        if "compile" in found:
            counted = found["compile"]
            notes.append(
                f"{name}: {counted['graphs']} compiled graphs, {counted['after the first attacked step']} of them "
                f"after the first attacked step, over {counted['different eps']} values of eps."
            )
    return "\n".join([*(lines if len(lines) > 2 else []), *(memory if len(memory) > 3 else []), *notes])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="Default: both.")
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=SECTIONS, metavar="SECTION",
                        help=f"Of {', '.join(MEASURES)}. Default: all but quickstart.")  # fmt: skip
    parser.add_argument("--rounds", type=positive, default=9, help="Of eps0 and limit. Default: 9.")
    parser.add_argument("--run-rounds", type=positive, default=2, help="Of whole runs. Default: 2.")
    parser.add_argument("--steps-a-round", type=positive, default=6, help="The first is not timed. Default: 6.")
    parser.add_argument("--epochs", type=positive, default=12, help="Of whole runs. Default: 12.")
    parser.add_argument("--images", type=positive, default=64, help="Training images, 32 a batch. Default: 64.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="Of quickstart. Default: 0.")
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads(), help="Of torch, on the CPU.")
    parser.add_argument("--cpu-time", action="store_true", help="Of this process, not wall time: on a busy machine.")
    parser.add_argument("--output", type=Path, help="Write a JSON report here.")
    # How the program calls itself, to measure memory in a process that did nothing else.
    parser.add_argument("--memory-of", choices=MEMORY, help=argparse.SUPPRESS)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    if options.cpu_time:
        CLOCK["read"] = time.process_time
    if options.memory_of:
        print(memory_of(options.memory_of, load_subject(options.models[0], options.images, warm_up=False)))
        return
    report = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": options.threads,
        "time": "CPU" if options.cpu_time else "wall",
        "rounds": options.rounds,
        "models": {},
    }
    for name in options.models:
        subject = load_subject(name, options.images)
        found = report["models"].setdefault(name, {})
        for section in options.only:
            if section != "quickstart" or name == "efficientnet_lite0":
                found[section] = MEASURES[section](subject, options)
            if options.output:  # as soon as it is known
                options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(markdown(report))


if __name__ == "__main__":
    main()
