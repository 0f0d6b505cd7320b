"""What a step of each objective costs over its own bare passes: at most 1.05.

    python -m hf_robust_ft.benchmarks.objective_cost --threads 2 --output objective_cost.json

As the section `limit` of `training_cost`: steps at the full eps over 7 input gradients, the forwards and the training
passes that an objective cannot do without, in turns; median, least and largest ratio over the rounds.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch

from hf_robust_ft.attacks.losses import get_loss
from hf_robust_ft.benchmarks.attack_cost import positive
from hf_robust_ft.benchmarks.training_cost import FULL, STEPS, TARGETS, BareSteps, in_turn, shown, spread, timed
from hf_robust_ft.benchmarks.training_subjects import MODELS, Subject, load_subject
from hf_robust_ft.runs.recipes import read_recipe
from hf_robust_ft.training.tuning.batch_norm import batch_norms

OBJECTIVES = {
    "at": {},
    "trades, attack on cross-entropy": {"objective": "trades"},
    "trades": read_recipe("trades"),
    "mart": read_recipe("mart"),
    "pmg_aft": {"objective": "pmg_aft"},
    "fare": {"objective": "fare", "attack_loss": "features", "attack_random_start": True},
    "twins_at": {"twins_lambda": 0.4, "batch_norm": "trainer"},
    "autolora": {"autolora": True, "autolora_rate": "off"},
}


def measure(subject: Subject, name: str, rounds: int, steps_a_round: int) -> dict:
    """The ratio for one of `OBJECTIVES`, and the seconds behind it."""
    settings = FULL | {"attack_steps": STEPS, "max_steps": steps_a_round} | OBJECTIVES[name]
    ours = timed(subject.adversarial_trainer, **settings)
    args = ours.trainer.args
    forwards = 1 + get_loss(args.attack_loss).needs_reference + args.teachers_passes(attacked=True)
    parts = 1 if args.twins_lambda is None else 2  # a pass for each half of the batch, which goes through its own norms
    limit = BareSteps(subject, steps_a_round, args.passes_under_attack + args.passes_beside, forwards, parts=parts)
    tools = {"ours": ours, "limit": limit}
    in_turn(tools, 1)
    found = in_turn(tools, rounds)
    own = [step for step, _ in found["ours"]]
    return {
        "passes": {"training": limit.passes, "forward": limit.forwards, "input gradient": STEPS},
        "seconds a step": {"ours": statistics.median(own), "limit": statistics.median(found["limit"])},
        "ratio": spread([each / least for each, least in zip(own, found["limit"], strict=True)]),
    }


def markdown(report: dict) -> str:
    """A row for each model and objective."""
    lines = ["| model | objective | step / bare passes: median (least..largest) | target | |", "|---|---|---|---|---|"]
    for model, found in report["models"].items():
        for name, each in found.items():
            lines.append(f"| {model} | {name} | {shown(each['ratio'], TARGETS['limit'], at_most=True)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--steps-a-round", type=positive, default=6)
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--output", type=Path, help="Write the ratios to this JSON file.")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report: dict = {"torch": torch.__version__, "threads": options.threads, "models": {}}
    for model in options.models:
        subject = load_subject(model)
        fitting = [
            name for name in options.objectives if "twins_lambda" not in OBJECTIVES[name] or batch_norms(subject.model)
        ]
        report["models"][model] = {
            name: measure(subject, name, options.rounds, options.steps_a_round) for name in fitting
        }
    print(markdown(report))
    if options.output:
        options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
