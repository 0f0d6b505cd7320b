"""Runs of a recipe that are trained once: who asks again gets what lies in their folder."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset
from transformers import PreTrainedModel

from hf_robust_ft.attacks.pixels import PixelSpace
from hf_robust_ft.data import align_labels, with_pixel_values
from hf_robust_ft.evaluation.report import RobustnessReport
from hf_robust_ft.experiments.planning.passes import phases
from hf_robust_ft.experiments.planning.training_length import training_length
from hf_robust_ft.models import load_image_classifier
from hf_robust_ft.provenance.affects import unsaid
from hf_robust_ft.provenance.record import RECIPE_NAME, differences, resolved_recipe
from hf_robust_ft.reporting.artifacts import REPORT_NAME
from hf_robust_ft.runs.arguments import at_most
from hf_robust_ft.runs.fine_tune import fine_tune
from hf_robust_ft.runs.recipes import RUN_ARGUMENTS, parse_recipe


class KeptRun(NamedTuple):
    """A finished run.

    Args:
        folder: its checkpoint, report, pictures and card.
        report: what was measured on the test images.
        history: what was logged in training (`Trainer`'s log history).
    """

    folder: Path
    report: RobustnessReport
    history: list[dict[str, Any]]

    def load(self) -> tuple[PreTrainedModel, Dataset, dict[str, Any]]:
        """What `evaluate_robustness(model, images, **how)` takes to measure the run again.

        Returns:
            The trained model; the test images it was measured on, as `pixel_values` and `labels`; its `threat_model`,
            grid of `epsilons` and `pixel_space`.
        """
        recipe = {"output_dir": str(self.folder)}
        _, data_args, args = parse_recipe(RUN_ARGUMENTS, self.folder / RECIPE_NAME, overrides=recipe)
        model, processor = load_image_classifier(str(self.folder))
        images = align_labels(data_args.load()["test"], model.config)
        images = at_most(images, data_args.max_eval_samples, data_args.split_seed, "max_eval_samples")
        how = {
            "threat_model": args.threat_model,
            "epsilons": args.evaluation_grid,
            "pixel_space": PixelSpace.from_processor(processor),
        }
        return model, with_pixel_values(images, processor), how


def kept_run(recipe: str | Path, folder: str | Path, **changes: Any) -> KeptRun:
    """The run of a recipe that lies in `folder`; it is trained and measured there first, if none does.

    Args:
        recipe: a shipped recipe's name or a YAML file, with model and dataset.
        changes: options of `hf-robust-ft train` in place of the recipe's.

    Raises:
        ValueError: the folder holds another run, or what `fine_tune` refuses.
    """
    folder = Path(folder)
    options = {"resume_from_checkpoint": "auto", **changes, "output_dir": str(folder)}
    model_args, data_args, args = parse_recipe(RUN_ARGUMENTS, recipe, overrides=options)
    report = finished_report(folder, resolved_recipe(model_args, data_args, args))
    if report is None:
        report = fine_tune(model_args, data_args, args).robustness_report
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return KeptRun(folder, report, history)


def finished_report(folder: Path, recipe: dict[str, Any]) -> RobustnessReport | None:
    """The report of a run that is over, which is written last; None where there is none.

    Args:
        recipe: of the run that is wanted, as `resolved_recipe` has it.

    Raises:
        ValueError: it is another run's.
    """
    if not (folder / REPORT_NAME).is_file():
        return None
    report = RobustnessReport.from_json(folder / REPORT_NAME)
    before = report.metadata.get("recipe", {})
    changed = differences(before, json.loads(json.dumps(recipe)), unsaid(*RUN_ARGUMENTS))
    if changed:
        raise ValueError(f"{folder} holds another run: {changed}. Give another --output_dir, or move it away.")
    return report


def training_passes(recipe: str | Path, **changes: Any) -> dict[str, int]:
    """What training costs, counted and not run: images in passes `training`, `input_gradient` and `forward`.

    Args:
        recipe: as of `kept_run`, with its `changes`.
    """
    options = {**changes, "output_dir": "."}
    model_args, data_args, args = parse_recipe(RUN_ARGUMENTS, recipe, overrides=options)
    splits = data_args.load()
    sizes = {name: len(split) for name, split in splits.items()}
    if model_args.max_train_samples is not None:
        sizes["train"] = min(sizes["train"], model_args.max_train_samples)
    classes = splits["train"].features["label"].num_classes
    parts = [
        part
        for part in phases(args, training_length(args, sizes["train"]), sizes, classes)
        if part.name.startswith(("training", "attack in training"))
    ]
    return {kind: sum(getattr(part, kind) for part in parts) for kind in ("training", "input_gradient", "forward")}
