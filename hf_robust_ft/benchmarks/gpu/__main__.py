"""What a CUDA machine shows of speed and memory, by itself, in a fixed time, without a network or a download.

    python -m hf_robust_ft.benchmarks.gpu --minutes 8 --json out.json
    python -m hf_robust_ft.benchmarks.gpu --render out.json
    python -m hf_robust_ft.benchmarks.gpu --device cpu --small --minutes 3 --json out.json

ViT-B/16, Swin-B, ConvNeXt-B and ResNet-50 have random weights, and images are random: times, memory and graphs are what
they are for others; accuracies say only whether two ways agree. Every section runs in its own process and time; what
fails or is not reached is a row that says so. The report is written after each section.
"""

import argparse
import json
import logging
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

# Nothing here may reach out.
os.environ["HF_HUB_OFFLINE"] = "1"

import torch

from hf_robust_ft.benchmarks.attack_cost import positive
from hf_robust_ft.benchmarks.gpu.cases import Setup
from hf_robust_ft.benchmarks.gpu.models import ARCHITECTURES
from hf_robust_ft.benchmarks.gpu.running import run_sections
from hf_robust_ft.benchmarks.gpu.sections import SECTIONS
from hf_robust_ft.benchmarks.gpu.table import render


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m hf_robust_ft.benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8, help="For all sections together. Default: 8.")
    parser.add_argument("--json", type=Path, help="Write the report here, after each section.")
    parser.add_argument("--render", type=Path, metavar="JSON", help="Measure nothing; print a report's table.")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda", help="Default: cuda.")
    parser.add_argument("--small", action="store_true", help="Tiny models of the same kinds: does it run?")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="Default: all.")
    parser.add_argument("--models", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES), help="Default: all.")
    parser.add_argument("--batch-size", type=positive, help="Default: 64; 4 with --small.")
    parser.add_argument("--steps", type=positive, help="Of the attack. Default: 7; 2 with --small.")
    parser.add_argument("--rounds", type=positive, help="Timed. Default: 5; 2 with --small.")
    options = parser.parse_args(argv)
    if not 0 < options.minutes < float("inf"):
        parser.error(f"--minutes must be above 0, got {options.minutes:g}.")
    if options.render and not options.render.is_file():
        parser.error(f"--render {options.render}: there is no such file; --json writes one.")
    if options.device == "cuda" and not options.render and not torch.cuda.is_available():
        parser.error("there is no CUDA device here: --device cpu --small shows whether all sections run.")
    return options


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    if options.render:
        print(render(json.loads(options.render.read_text(encoding="utf-8"))))
        return
    batch_size, steps, rounds = (4, 2, 2) if options.small else (64, 7, 5)
    setup = Setup(
        options.device,
        options.small,
        tuple(options.models),
        options.batch_size or batch_size,
        options.steps or steps,
        options.rounds or rounds,
    )
    begun = time.monotonic()
    report = {"card": setup.card, "torch": torch.__version__, "setup": asdict(setup), "minutes": options.minutes}

    def note(rows: list[dict]) -> None:
        report.update(seconds=time.monotonic() - begun, rows=rows)
        if options.json:
            options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        print(f"{len(rows)} rows after {report['seconds']:.0f} s", file=sys.stderr, flush=True)

    run_sections(setup, 60 * options.minutes, options.sections, note)
    print(render(report))


if __name__ == "__main__":
    logging.getLogger("hf_robust_ft").setLevel(logging.ERROR)
    main()
