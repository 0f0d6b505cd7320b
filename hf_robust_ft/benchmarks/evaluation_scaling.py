"""What a second process saves an evaluation; the aim is within 5 % of linear.

    python -m hf_robust_ft.benchmarks.evaluation_scaling --model runs/quickstart --images 180 --output scaling.json

The same evaluation on one process and on two (gloo, one thread each, started by torchrun). Wall time says nothing on a
machine that has other work, so there are also processor seconds and counted passes of each process, a gradient as three
forwards: two processes that do the work of one, and share it evenly, take half the time wherever each has a core. The
trust checks, which one process makes of at most 64 images while others wait, are left out unless asked for.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from hf_robust_ft.attacks.pass_meter import FORWARDS_PER_GRADIENT, PassMeter
from hf_robust_ft.attacks.pixels import PixelClassifier
from hf_robust_ft.attacks.threat_model import ThreatModel
from hf_robust_ft.benchmarks.checkpoint import Checkpoint, checkpoint_parser, load_checkpoint
from hf_robust_ft.evaluation.distributed import SharedWork
from hf_robust_ft.evaluation.evaluate import evaluate_robustness

Shares = list[dict[str, float]]


def share_of_this_process(
    checkpoint: Checkpoint, threat_model: ThreatModel, batch_size: int, checks: bool, **settings: Any
) -> dict[str, float]:
    """Evaluate with the other processes: this one's passes, processor seconds and wall seconds.

    Args:
        settings: `protocol` and `attack_steps` of `evaluate_robustness`.
    """
    classifier = PixelClassifier(checkpoint.model, checkpoint.space).eval()
    settings |= {"threat_model": threat_model, "batch_size": batch_size, "checks": checks, "progress": False}
    images = [{"pixel_values": x, "labels": y} for x, y in zip(checkpoint.pixels, checkpoint.labels, strict=True)]
    with torch.no_grad():
        classifier(checkpoint.pixels[:batch_size])  # what a first pass makes
    SharedWork().gather(None)  # all begin together
    wall, processor = time.perf_counter(), time.process_time()
    with PassMeter(classifier) as meter:
        evaluate_robustness(classifier, images, **settings)
    return {
        "passes": meter.forwards + (FORWARDS_PER_GRADIENT - 1) * meter.gradients,
        "processor seconds": time.process_time() - processor,
        "wall seconds": time.perf_counter() - wall,
    }


def compared(one: Shares, several: Shares) -> dict[str, dict[str, float]]:
    """What the shares of several processes say beside that of one, by each measure.

    >>> compared([{"passes": 100}], [{"passes": 55}, {"passes": 47}])
    {'passes': {'together / one process': 1.02, 'busiest / mean': 1.08, 'speed-up': 1.82, 'of linear': 0.91}}
    """
    found = {}
    for measure in one[0]:
        values, alone = [share[measure] for share in several], one[0][measure]
        found[measure] = {
            "busiest / mean": max(values) * len(values) / sum(values),
            "speed-up": alone / max(values),
            "of linear": alone / max(values) / len(values),
        }
        if measure != "wall seconds":
            found[measure] = {"together / one process": sum(values) / alone} | found[measure]
    return {measure: {name: round(value, 2) for name, value in each.items()} for measure, each in found.items()}


def markdown(found: dict[str, dict[str, float]]) -> str:
    """A row for each measure."""
    names = list(found["passes"])
    lines = [f"| measure | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    lines += [
        f"| {measure} | {' | '.join(str(each.get(name, '-')) for name in names)} |" for measure, each in found.items()
    ]
    return "\n".join(lines)


def run_on(processes: int, argv: list[str]) -> Shares:
    """The shares of so many processes, in a group of their own.

    Raises:
        subprocess.CalledProcessError: one failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "shares.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command += ["-m", "hf_robust_ft.benchmarks.evaluation_scaling", *argv, "--shares-to", str(output)]
        subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
        return json.loads(output.read_text(encoding="utf-8"))


def as_one_of_several(options: argparse.Namespace) -> None:
    """Take part in the evaluation, and write everyone's shares."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    try:
        share = share_of_this_process(
            load_checkpoint(options),
            ThreatModel(options.norm, options.eps),
            options.batch_size,
            options.checks,
            protocol=options.protocol,
            attack_steps=int(options.attack_steps) if options.attack_steps.isdecimal() else options.attack_steps,
        )
        shares = SharedWork().gather(share)
        if torch.distributed.get_rank() == 0:
            options.shares_to.write_text(json.dumps(shares), encoding="utf-8")
    finally:
        torch.distributed.destroy_process_group()


def main() -> None:
    parser = checkpoint_parser(__doc__.splitlines()[0], eps="8/255", images=180)
    parser.add_argument("--protocol", default="paper", help="As in hf-robust-ft evaluate. Default: paper.")
    parser.add_argument("--attack_steps", default="10", help="A number, or auto. Default: 10.")
    parser.add_argument("--batch_size", type=int, default=16, help="Images. Default: 16.")
    parser.add_argument("--checks", action="store_true", help="With the trust checks.")
    parser.add_argument("--output", type=Path, help="Write a JSON report here.")
    parser.add_argument("--shares-to", type=Path, help=argparse.SUPPRESS)  # how the program calls itself
    options = parser.parse_args()
    if options.shares_to:
        as_one_of_several(options)
        return
    shares = {processes: run_on(processes, sys.argv[1:]) for processes in (1, 2)}
    found = compared(shares[1], shares[2])
    if options.output:
        report = {"torch": torch.__version__, "options": vars(options), "shares": shares, "compared": found}
        options.output.write_text(json.dumps(report, indent=2, default=str) + "\n", encoding="utf-8")
    print(markdown(found))


if __name__ == "__main__":
    main()
