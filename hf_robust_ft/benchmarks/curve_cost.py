"""What the accuracy-eps curve costs, and how low it is: the naive grid, protocol paper and protocol exact side by side.

    python -m hf_robust_ft.benchmarks.curve_cost --model quickstart --dataset digits --eps 8/255

The naive grid attacks every image at every point, to the last step, as published evaluation loops do. The three take
turns on the same images; the figures are ratios of wall time, the median over the rounds.
"""

import json
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from hf_robust_ft.attacks import APGD, attack_mode
from hf_robust_ft.attacks.pixels import PixelClassifier
from hf_robust_ft.attacks.threat_model import ThreatModel, format_eps
from hf_robust_ft.benchmarks.checkpoint import checkpoint_parser, load_checkpoint
from hf_robust_ft.evaluation.protocols import attack_on_grid, attack_to_the_minimum, evaluation_attack, resolve_epsilons


def naive_grid(
    logits_fn, pixels: Tensor, labels: Tensor, *, threat_model: ThreatModel, epsilons, attack: APGD
) -> Tensor:
    """Every image at every point: (N, E) bool, correct or not."""
    columns = []
    for eps in epsilons:
        columns.append(~attack(logits_fn, pixels, labels, threat_model, eps=eps).fooled)
    return torch.stack(columns, dim=1)


def by_protocol(measure: Callable, *args, epsilons, **options) -> Tensor:
    outcome = measure(*args, epsilons=epsilons, **options)
    return outcome.smallest_eps[:, None] > torch.tensor(
        epsilons, dtype=torch.float64, device=outcome.smallest_eps.device
    )


WAYS = {
    "naive": naive_grid,
    "paper": partial(by_protocol, attack_on_grid),
    "exact": partial(by_protocol, attack_to_the_minimum),
}


def in_batches(way: Callable, classifier, pixels: Tensor, labels: Tensor, batch_size: int, **options) -> Tensor:
    parts = zip(pixels.split(batch_size), labels.split(batch_size), strict=True)
    return torch.cat([way(classifier, x, y, **options) for x, y in parts])


def main() -> None:
    parser = checkpoint_parser(__doc__.splitlines()[0], eps="8/255", images=240)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch_size", type=int, default=240)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", help="Write the figures as JSON here.")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    model, memory_format, space, pixels, labels = load_checkpoint(options)
    classifier = PixelClassifier(model, space).eval()
    threat_model = ThreatModel(options.norm, options.eps)
    epsilons = resolve_epsilons(None, threat_model)
    attack = evaluation_attack(options.steps, norm=options.norm)
    setting = {"threat_model": threat_model, "epsilons": epsilons, "attack": attack}

    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    correct: dict[str, Tensor] = {}
    with attack_mode(classifier):
        names = list(WAYS)
        for turn in range(options.rounds):
            for name in names[turn % 3 :] + names[: turn % 3]:
                started = time.perf_counter()
                correct[name] = in_batches(WAYS[name], classifier, pixels, labels, options.batch_size, **setting)
                seconds[name].append(time.perf_counter() - started)
    ratios = {name: [own / naive for own, naive in zip(seconds[name], seconds["naive"], strict=True)] for name in WAYS}
    accuracies = {name: correct[name].double().mean(0).tolist() for name in WAYS}
    result = {
        "model": options.model,
        "images": len(labels),
        "batch_size": options.batch_size,
        "attack_steps": options.steps,
        "memory_format": memory_format,
        "threads": options.threads,
        "torch": torch.__version__,
        "median ratio to the naive grid": {name: statistics.median(values) for name, values in ratios.items()},
        "ratios": ratios,
        "seconds": seconds,
        "epsilons": epsilons,
        "accuracies": accuracies,
    }
    if options.output:
        with open(options.output, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=2)
    print(markdown_table(result))


def markdown_table(result: dict) -> str:
    """A row per way: cost and accuracy in percent at each eps."""
    lines = [
        "| way | time / naive |" + "".join(f" {format_eps(eps)} |" for eps in result["epsilons"]),
        "|---|---|" + "---|" * len(result["epsilons"]),
    ]
    for name, ratio in result["median ratio to the naive grid"].items():
        spread = f"{ratio:.2f} ({min(result['ratios'][name]):.2f} to {max(result['ratios'][name]):.2f})"
        cells = "".join(f" {100 * accuracy:.1f} |" for accuracy in result["accuracies"][name])
        lines.append(f"| {name} | {spread} |{cells}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
