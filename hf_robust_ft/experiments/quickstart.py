"""The embedded default: ImageNet EfficientNet-Lite0 on handwritten digits, and what scheduling eps changes."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset

from hf_robust_ft.attacks.autoattack import check_autoattack
from hf_robust_ft.attacks.pixels import PixelSpace
from hf_robust_ft.data import align_labels, with_pixel_values
from hf_robust_ft.evaluation.convergence_text import first_round
from hf_robust_ft.evaluation.evaluate import RobustnessReport, evaluate_robustness
from hf_robust_ft.evaluation.reliability import count_reliable
from hf_robust_ft.experiments.kept_runs import finished_report
from hf_robust_ft.models import load_image_classifier
from hf_robust_ft.provenance.file_names import check_output_dir
from hf_robust_ft.provenance.record import RECIPE_NAME, resolved_recipe
from hf_robust_ft.reporting import plot_curves, plot_training
from hf_robust_ft.reporting.artifacts import REPORT_NAME
from hf_robust_ft.reporting.drawing import drawn
from hf_robust_ft.runs.arguments import at_most
from hf_robust_ft.runs.fine_tune import fine_tune
from hf_robust_ft.runs.recipes import RUN_ARGUMENTS, parse_recipe
from hf_robust_ft.training.arguments import AdversarialTrainingArguments

SCORES = ("clean_accuracy", "adversarial_accuracy", "expected_robustness")

NOTE = (
    "A small example on handwritten digits, to try things out with: do not deploy it where robustness matters. The "
    "package's README holds what standard AutoAttack finds beyond these figures."
)

# Run name -> what it changes in the recipe.
COMPARED = {
    "hinge": {"eps_schedule": "hinge"},
    "fix": {"eps_schedule": "constant"},
    "standard": {"eps_schedule": "none"},
}


def quickstart(
    output_dir: str | Path, *, compare: bool = False, seeds: Sequence[int] = (0,), autoattack: int = 0
) -> dict:
    """Run the recipe `quickstart`; with `compare`, also at a fixed eps (fix) and without attacks (standard).

    The first seed's hinge run is written to `output_dir` itself, every other run to `output_dir/<run>-seed<seed>`.

    Args:
        autoattack: measure each run on so many test images by standard AutoAttack as well, into its folder
            `autoattack`, beside what the converged attack finds on the same images.

    Returns:
        Reports by run name and seed, `{"hinge": {0: RobustnessReport}, ...}`.

    Raises:
        ImportError: AutoAttack is asked for and not installed.
        ValueError: a seed given twice, a folder that cannot be or holds something else, or a negative number of images.
    """
    check_output_dir(output_dir)
    if autoattack:
        check_autoattack(autoattack)
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds={list(seeds)}: give each seed once.")
    output_dir = Path(output_dir)
    is_ours = any((output_dir / name).is_file() for name in (RECIPE_NAME, REPORT_NAME))
    if output_dir.is_dir() and any(output_dir.iterdir()) and not is_ours:
        raise ValueError(f"output_dir={str(output_dir)!r} holds other files: name a new folder.")
    reports: dict[str, dict[int, RobustnessReport]] = {}
    scores: dict[str, dict[int, dict[str, float]]] = {}
    histories = {}
    for seed in seeds:
        for name in COMPARED if compare else ("hinge",):
            is_main = name == "hinge" and seed == seeds[0]
            folder = output_dir if is_main else output_dir / f"{name}-seed{seed}"
            print(f"\n=== {name}, seed {seed} -> {folder}", flush=True)
            report, history, beside = _run(name, seed, folder, autoattack)
            print(report, flush=True)
            reports.setdefault(name, {})[seed] = report
            scores.setdefault(name, {})[seed] = _scores(report, beside)
            if seed == seeds[0]:
                histories[name] = history
    if compare:
        every = [report.reliability for by_seed in reports.values() for report in by_seed.values()]
        table = f"{comparison_table(scores)}\n\n{count_reliable(every)}"
        (output_dir / "comparison.md").write_text(table + "\n", encoding="utf-8")
        (output_dir / "comparison.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
        firsts = {name: by_seed[seeds[0]] for name, by_seed in reports.items()}
        curve, training = output_dir / "comparison_curve.png", output_dir / "comparison_training.png"
        drawn("The runs' accuracy-eps curves", lambda: plot_curves(firsts, curve), curve)
        drawn("The runs' pictures of training", lambda: plot_training(histories, training), training)
        print(f"\n{table}")
    return reports


def _run(
    name: str, seed: int, folder: Path, autoattack: int
) -> tuple[RobustnessReport, list[dict], RobustnessReport | None]:
    """The report, what was logged, and the report on the images that AutoAttack was asked for."""
    # The same command goes on with a run that was stopped.
    changes = {**COMPARED[name], "seed": seed, "output_dir": str(folder), "resume_from_checkpoint": "auto"}
    model_args, data_args, args = parse_recipe(RUN_ARGUMENTS, "quickstart", overrides=changes)
    metadata = {
        "model_name": f"EfficientNet-Lite0 on digits, {name}",
        "license": "apache-2.0",
        "notes": [NOTE],
        "command": f"hf-robust-ft quickstart --seeds {seed}" + ("" if name == "hinge" else " --compare"),
        "recipe": resolved_recipe(model_args, data_args, args),
    }
    report = finished_report(folder, metadata["recipe"])
    if report is None:
        report = fine_tune(model_args, data_args, args, metadata).robustness_report
    beside = None
    if autoattack:
        few = at_most(data_args.load()["test"], autoattack, data_args.split_seed, "autoattack")
        beside = _beside_autoattack(folder, few, args)
        beside.to_json(folder / "autoattack" / REPORT_NAME)
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return report, history, beside


def _beside_autoattack(folder: Path, images: Dataset, args: AdversarialTrainingArguments) -> RobustnessReport:
    """What the evaluation's attacks leave of the images at eps_g, and AutoAttack of that."""
    model, processor = load_image_classifier(str(folder))
    return evaluate_robustness(
        model,
        with_pixel_values(align_labels(images, model.config), processor),
        threat_model=args.threat_model,
        pixel_space=PixelSpace.from_processor(processor),
        epsilons=[0.0, args.threat_model.eps],
        attack=args.eval_attack,
        protocol=args.eval_protocol,
        attack_steps=args.eval_attack_steps,
        attack_steps_limit=args.eval_attack_steps_limit,
        autoattack=len(images),
        checks=False,
        results_dir=folder / "autoattack",
    )


def comparison_table(scores: dict[str, dict]) -> str:
    """A Markdown table in percent: a row per run, mean and standard deviation over the seeds where there are several.

    Args:
        scores: by run name and seed, as in `comparison.json`.
    """
    runs = list(scores.values())
    keys = [key for key in runs[0][next(iter(runs[0]))] if all(key in score for run in runs for score in run.values())]
    seeds = dict.fromkeys(str(seed) for by_seed in scores.values() for seed in by_seed)
    lines = [
        f"| run (seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}) | " + " | ".join(map(_column, keys)) + " |",
        "|---|" + "---|" * len(keys),
    ]
    for name, by_seed in scores.items():
        cells = []
        for key in keys:
            values = 100 * np.array([score[key] for score in by_seed.values()])
            spread = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.1f}{spread}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _column(score: str) -> str:
    """What stands above a score of `_scores`."""
    if images := re.fullmatch(r"(adversarial|autoattack)_accuracy_of_(\d+)_images", score):
        return f"{images[2]} images: {'AutoAttack' if images[1] == 'autoattack' else 'converged'}"
    if steps := re.search(r"_(\d+)_steps$", score):
        return f"{score.split('_')[0]}, {steps[1]} steps"
    return "clean" if score == "clean_accuracy" else f"{score.split('_')[0]}, converged"


def _scores(report: RobustnessReport, beside: RobustnessReport | None) -> dict[str, float]:
    """A run's figures; beside the converged ones those of the first steps, the paper's, and AutoAttack's."""
    scores = {name: getattr(report, name) for name in SCORES}
    if first := first_round(report.convergence):
        scores |= {f"{name}_{first['steps']}_steps": first[name] for name in SCORES if name in first}
    if beside is not None:
        of = f"_of_{beside.autoattack_samples}_images"
        scores |= {f"adversarial_accuracy{of}": beside.adversarial_accuracy}
        scores |= {f"autoattack_accuracy{of}": beside.autoattack_accuracy}
    return scores
