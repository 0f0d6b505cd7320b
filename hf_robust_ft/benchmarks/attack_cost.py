"""What one APGD attack costs: time over the bare input gradients, ours and other libraries', and memory.

    python -m hf_robust_ft.benchmarks.attack_cost --threads 2 --output attack_cost.json

The limit is n input gradients and one forward. Tools run in turn on the same batch, frozen classifier and threads; a
ratio compares times of one round only. Freezing favours the peers, which do not do it themselves. Neither peer skips
an image that is fooled within a restart, so all run every step on the whole batch; that is counted, not assumed.

AutoAttack's APGD comes from pyautoattack, torchattacks is 3.3.0, the last one that does not pin a `requests` too
old for `datasets` (both in the extra `bench`; one that is not installed is left out). Memory is how far it rises in a
fresh process, warmed up on two images: on CUDA what torch allocated, else resident memory (Linux only). The training
step is forward, backward and the first step of AdamW, whose moments it thus allocates.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification

from hf_robust_ft.attacks import APGD, attack_mode, use_fast_memory_format
from hf_robust_ft.attacks.pixels import PixelClassifier, PixelSpace
from hf_robust_ft.attacks.threat_model import ThreatModel
from hf_robust_ft.models import load_image_classifier

THREAT_MODEL = ThreatModel("Linf", "1/255")
PEERS = ("AutoAttack", "torchattacks")
LIMIT = "limit"
PEAK_RESET = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Setting:
    """A model at one input size, and a batch that keeps one attack on a CPU core at 0.5 to 4 seconds."""

    model: str
    image_size: int
    batch_size: int

    @property
    def name(self) -> str:
        return f"{self.model}@{self.image_size}"


SETTINGS = {
    setting.name: setting
    for setting in (
        Setting("efficientnet_lite0", 32, 64),
        Setting("efficientnet_lite0", 96, 16),
        Setting("vit_tiny", 96, 16),
        Setting("vit_tiny", 224, 4),
    )
}


@dataclass
class Subject:
    """A frozen classifier in evaluation mode, pixels (N, 3, H, W) in [0, 1], its own predictions as labels (N,)."""

    classifier: PixelClassifier
    pixels: Tensor
    labels: Tensor
    memory_format: str


def load_subject(setting: Setting, device: str = "cpu") -> Subject:
    """The pretrained EfficientNet-Lite0, or a ViT-tiny of random weights, with uniform noise as images."""
    if setting.model == "efficientnet_lite0":
        model, processor = load_image_classifier(setting.model, image_size=setting.image_size)
        space = PixelSpace.from_processor(processor)
    else:
        torch.manual_seed(0)
        shape = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768}
        config = ViTConfig(image_size=setting.image_size, patch_size=16, num_labels=1000, **shape)
        model, space = ViTForImageClassification(config), PixelSpace((0.5,) * 3, (0.5,) * 3)
    memory_format = use_fast_memory_format(model)
    classifier = PixelClassifier(model.to(device), space).eval().requires_grad_(False)
    size = (setting.batch_size, 3, setting.image_size, setting.image_size)
    pixels = torch.rand(size, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        labels = classifier(pixels).argmax(1)
    return Subject(classifier, pixels, labels, memory_format)


def bare_gradients(subject: Subject, steps: int) -> None:
    """What no APGD can do without: `steps` input gradients and one forward."""
    for _ in range(steps):
        x = subject.pixels.detach().requires_grad_()
        torch.autograd.grad(F.cross_entropy(subject.classifier(x), subject.labels, reduction="sum"), x)
    with torch.no_grad():
        subject.classifier(subject.pixels)


def our_attack(subject: Subject, steps: int) -> None:
    with attack_mode(subject.classifier):
        APGD(steps=steps, random_start=False)(subject.classifier, subject.pixels, subject.labels, THREAT_MODEL)


def attacks(subject: Subject, steps: int) -> dict[str, Callable[[], object]]:
    """One APGD-CE run of each library that is installed, and the limit."""
    found = {LIMIT: lambda: bare_gradients(subject, steps), "ours": lambda: our_attack(subject, steps)}
    options = {"norm": THREAT_MODEL.norm, "eps": THREAT_MODEL.eps, "n_restarts": 1, "loss": "ce"}
    with suppress(ImportError):
        from pyautoattack.autopgd_base import APGDAttack

        first = APGDAttack(subject.classifier, n_iter=steps, device=subject.pixels.device, **options)
        found["AutoAttack"] = lambda: first.perturb(subject.pixels, subject.labels)
    with suppress(ImportError):
        import torchattacks

        second = torchattacks.APGD(subject.classifier, steps=steps, **options)
        found["torchattacks"] = lambda: second(subject.pixels, subject.labels)
    return found


def count_passes(classifier: PixelClassifier, work: Callable[[], object], batch_size: int) -> dict[str, float]:
    """How many times `work` sends the batch through the classifier, with and without an input gradient."""
    images = {"with gradient": 0, "without": 0}

    def note(module, inputs):
        images["with gradient" if inputs[0].requires_grad else "without"] += len(inputs[0])

    hook = classifier.register_forward_pre_hook(note)
    try:
        work()
    finally:
        hook.remove()
    return {kind: count / batch_size for kind, count in images.items()}


def time_in_turn(
    tools: dict[str, Callable[[], object]], rounds: int, device: str, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of every tool in every round; each round starts with another tool."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    names, seconds = list(tools), {name: [] for name in tools}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            wait()
            start = clock()
            tools[name]()
            wait()
            seconds[name].append(clock() - start)
    return seconds


def ratios_to_limit(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Of each tool: median, least and largest ratio to the limit of the same round."""
    found = {}
    for name in [name for name in seconds if name != LIMIT]:
        ratios = [own / limit for own, limit in zip(seconds[name], seconds[LIMIT], strict=True)]
        found[name] = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    return found


def training_step(subject: Subject) -> None:
    subject.classifier.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(subject.classifier.parameters())
    F.cross_entropy(subject.classifier(subject.pixels), subject.labels).backward()
    optimizer.step()
    optimizer.zero_grad()


def memory_rise(work: Callable[[], object], device: str) -> float:
    """MiB by which `work` raises the memory in use at its peak.

    On the CPU the kernel's peak of resident memory, reset beforehand. `ru_maxrss` would not do: it also covers loading
    the model, and a child process inherits its parent's.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    PEAK_RESET.write_text("5")  # the peak becomes what is resident now
    before = _peak_kib()
    work()
    return (_peak_kib() - before) / 2**10


def _peak_kib() -> int:
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def memory_of(kind: str, setting: Setting, steps: int, device: str) -> float:
    """MiB that an attack or a training step on the whole batch takes."""
    subject = load_subject(setting, device)
    work = (lambda batch: our_attack(batch, steps)) if kind == "attack" else training_step
    # The first time also loads code and makes workspaces; BatchNorm in training needs two values a channel.
    work(replace(subject, pixels=subject.pixels[:2], labels=subject.labels[:2]))
    return memory_rise(lambda: work(subject), device)


def memory_in_fresh_processes(setting: Setting, options: argparse.Namespace) -> dict[str, float] | None:
    """MiB of one attack and of one training step on the same batch; None where there is nothing to read it from."""
    if options.device != "cuda" and not PEAK_RESET.exists():
        return None
    rise = {}
    for kind in ("attack", "training step"):
        command = [sys.executable, "-m", "hf_robust_ft.benchmarks.attack_cost", "--memory-of", kind]
        command += ["--models", setting.name, "--device", options.device]
        command += ["--steps", str(options.steps), "--threads", str(options.threads)]
        # glibc otherwise keeps freed tensors of up to 32 MiB, and the peak counts them.
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        rise[kind] = float(done.stdout.splitlines()[-1])
    return rise | {"ratio": rise["attack"] / rise["training step"]}


def check_all_attacked(passes: dict[str, dict[str, float]], steps: int) -> None:
    """Raise a RuntimeError if a tool left part of the batch out, so that its time means nothing."""
    for name, counted in passes.items():
        if counted["with gradient"] < steps:
            raise RuntimeError(
                f"{name} took {counted['with gradient']:g} gradients of the batch in {steps} steps: it did "
                "not attack every image at every step, and its time cannot be compared."
            )


def measure(setting: Setting, options: argparse.Namespace) -> dict:
    """One row of the report."""
    subject = load_subject(setting, options.device)
    tools = attacks(subject, options.steps)
    # This first round also warms everything up; only the later ones are timed.
    passes = {name: count_passes(subject.classifier, work, setting.batch_size) for name, work in tools.items()}
    check_all_attacked(passes, options.steps)
    clock = time.process_time if options.cpu_time else time.perf_counter
    seconds = time_in_turn(tools, options.rounds, options.device, clock)
    return {
        "model": setting.model,
        "image size": setting.image_size,
        "batch size": setting.batch_size,
        "memory format": subject.memory_format,
        "passes": passes,
        "seconds by round": seconds,
        "time over limit": ratios_to_limit(seconds),
        "memory MiB": memory_in_fresh_processes(setting, options),
    }


def markdown_table(rows: list[dict]) -> str:
    """Ratios to the limit as median (least..largest); "-" for what was not measured."""
    columns = ("model", "input", "ours", *PEERS, "attack memory / training-step memory")
    lines = [columns, ["---"] * len(columns)]
    for row in rows:
        cells = [row["model"], f"{row['batch size']} x {row['image size']} px"]
        for name in ("ours", *PEERS):
            ratio = row["time over limit"].get(name)
            cells.append(f"{ratio['median']:.3f} ({ratio['min']:.3f}..{ratio['max']:.3f})" if ratio else "-")
        memory = row["memory MiB"]
        used = memory and f"{memory['ratio']:.2f} ({memory['attack']:.0f} / {memory['training step']:.0f} MiB)"
        lines.append([*cells, used or "-"])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = f"From {', '.join(SETTINGS)} (pixels). Default: all."
    parser.add_argument("--models", nargs="+", choices=SETTINGS, default=list(SETTINGS), metavar="NAME", help=names)
    parser.add_argument("--steps", type=positive, default=10, help="Of APGD. Default: 10.")
    parser.add_argument("--rounds", type=positive, default=7, help="After one warm-up round. Default: 7.")
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads(), help="Of torch, on the CPU.")
    parser.add_argument("--cpu-time", action="store_true", help="Of this process, not wall time: on a busy machine.")
    parser.add_argument("--output", type=Path, help="Write a JSON report here.")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="Default: cpu.")
    # How the program calls itself, to measure memory in a process that did nothing else.
    parser.add_argument("--memory-of", choices=["attack", "training step"], help=argparse.SUPPRESS)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    settings = [SETTINGS[name] for name in options.models]
    if options.memory_of:
        print(memory_of(options.memory_of, settings[0], options.steps, options.device))
        return
    rows = [measure(setting, options) for setting in settings]
    report = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "threads": options.threads,
        "attack": f"{THREAT_MODEL}, {APGD(steps=options.steps, random_start=False)}",
        "rounds": options.rounds,
        "time": "CPU" if options.cpu_time else "wall",
        "rows": rows,
    }
    if options.output:
        options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
