"""One evaluation from names to a report with its evidence; what `hf-robust-ft evaluate` does."""

import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset, DatasetDict
from transformers import PreTrainedModel

from hf_robust_ft.attacks.pixels import PixelClassifier, PixelSpace
from hf_robust_ft.data import align_labels, describe_transforms, with_pixel_values
from hf_robust_ft.data.source_hashes import source_digest
from hf_robust_ft.evaluation.batches import stack_examples
from hf_robust_ft.evaluation.evaluate import evaluate_as
from hf_robust_ft.evaluation.report import RobustnessReport
from hf_robust_ft.evaluation.results_store import BATCHES
from hf_robust_ft.evaluation.stored_examples import STORED_EXAMPLES
from hf_robust_ft.models import load_image_classifier
from hf_robust_ft.provenance.choices import check_choice
from hf_robust_ft.provenance.class_names import class_names
from hf_robust_ft.provenance.record import environment_facts
from hf_robust_ft.provenance.weight_hashes import hash_weight_files
from hf_robust_ft.reporting import choose_examples, save_examples, write_evidence
from hf_robust_ft.reporting.examples import remove_examples
from hf_robust_ft.reporting.model_card import EXAMPLES
from hf_robust_ft.reporting.report_files import Report
from hf_robust_ft.runs.arguments import DataArguments, at_most
from hf_robust_ft.runs.evaluate_detection import measure_detection
from hf_robust_ft.runs.evaluate_segmentation import measure_segmentation
from hf_robust_ft.runs.evaluation_arguments import EvaluationArguments
from hf_robust_ft.runs.model_names import check_model_name, describe_model
from hf_robust_ft.runs.task_arguments import DETECTION, SEGMENTATION

OTHER_TASKS = {SEGMENTATION: measure_segmentation, DETECTION: measure_detection}


def measure(options: EvaluationArguments, data_args: DataArguments, command: str) -> tuple[PartialState, Report]:
    """Load, measure and, with an `output_dir`, write; under torchrun every process takes its share of the images.

    Raises:
        ValueError: what `evaluate_robustness`, `load_image_dataset` or `load_image_classifier` refuse.
    """
    check_model_name(options.model, options.model_revision)
    if options.output_dir and os.path.isfile(os.path.join(options.output_dir, "config.json")):
        raise ValueError(
            f"{options.output_dir} holds a checkpoint, whose report and card would be overwritten: give another "
            "output_dir."
        )
    state = PartialState(cpu=options.device == "cpu" or not torch.cuda.is_available())
    device = _device(options.device, state)
    task = data_args.settle_task(options.model, data_args.dataset, options.model_revision)
    if task in OTHER_TASKS:
        return state, OTHER_TASKS[task](options, data_args, command, device, state)
    model, processor, images, splits = load_model_and_images(options, data_args)
    hashes = {"weights_sha256": hash_weight_files(options.model)} if os.path.isdir(options.model) else {}
    data = data_args.describe(splits)
    if state.is_main_process:
        _warn_of_another_split(options.model, data)
    dataset, pixel_space = with_pixel_values(images, processor), PixelSpace.from_processor(processor)
    names = class_names(model.config)
    report = evaluate_as(
        options.settings,
        model,
        dataset,
        pixel_space=pixel_space,
        checks=options.trust_checks,
        batch_size=options.batch_size,
        device=device,
        results_dir=Path(options.output_dir, BATCHES) if options.output_dir else None,
        examples_dir=Path(options.output_dir, STORED_EXAMPLES) if options.store_examples else None,
        class_names=names,
    )
    facts = {
        **describe_model(options.model),
        **data,
        "split": options.split,
        "source_digest": source_digest(images),
        "transforms": describe_transforms(processor, augmentation=None),
        **hashes,
    }
    report = report.with_metadata(**facts, **environment_facts(), command=command)
    if options.output_dir and state.is_main_process:
        attack = replace(options.settings.attack, steps=report.attack["steps"])
        how = {"threat_model": options.settings.threat_model, "attack": attack, "class_names": names}
        classifier = PixelClassifier(model, pixel_space)
        draw = partial(_write_examples, options, classifier, dataset, report, data_args.split_seed, how)
        write_evidence(report, options.output_dir, examples=draw if options.save_examples else None)
    return state, report


def load_model_and_images(
    options: EvaluationArguments, data_args: DataArguments
) -> tuple[PreTrainedModel, Any, Dataset, DatasetDict]:
    """The model, its image processor, the images to measure it on with the classes in its order, and all splits.

    Raises:
        ValueError: an unknown split, or what `load_image_dataset` or `load_image_classifier` refuse.
    """
    splits = data_args.load(require_train=False)
    check_choice("split", options.split, splits)
    given = options.loading_options()
    if options.architecture is not None:  # a file of tensors names no classes: they are the dataset's, in its order
        given |= {"label_names": splits[options.split].features["label"].names, "head": "keep"}
    model, processor = load_image_classifier(
        options.model, architecture=options.architecture, image_size=options.image_size, **given
    )
    images = align_labels(splits[options.split], model.config)
    images = at_most(images, data_args.max_eval_samples, data_args.split_seed, "max_eval_samples")
    return model, processor, images, splits


def _device(wanted: str | None, state: PartialState) -> torch.device:
    """Where this process computes; a ValueError if it cannot be there."""
    if wanted is None or wanted == state.device.type:
        return state.device
    if state.num_processes > 1:
        raise ValueError(
            f"Each of the {state.num_processes} processes has a device of its own ({state.device}), so --device "
            f"{wanted} cannot be: leave it out, or give cpu."
        )
    try:
        return torch.empty(0, device=wanted).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split(". ")[0]
        if reason.startswith("Expected one of"):  # twenty types of devices
            reason = "PyTorch knows no such device"
        raise ValueError(f"device {wanted!r} cannot be used here: {reason}. Give cpu, cuda, cuda:1 or mps.") from None


def _write_examples(
    options: EvaluationArguments,
    classifier: PixelClassifier,
    dataset: Dataset,
    report: RobustnessReport,
    seed: int,
    how: dict[str, Any],
) -> None:
    """Strips of images that were right and fell, and that stood, as `save_examples` makes them."""
    folder = Path(options.output_dir, EXAMPLES)
    candidates, fell = choose_examples(report.smallest_epsilons, options.save_examples, seed)
    if not candidates:
        remove_examples(folder)
        print("No image is right without an attack, so there are no examples to show.")
        return
    batch = stack_examples([dataset[index] for index in candidates])
    save_examples(
        classifier,
        classifier.pixel_space.clipped_pixels(batch["pixel_values"]),
        batch["labels"],
        folder,
        fell=fell,
        count=options.save_examples,
        batch_size=options.batch_size,
        **how,
    )


def _warn_of_another_split(model: str, data: dict) -> None:
    """A checkpoint trained on other splits of the same data may have seen the images it is measured on."""
    path = os.path.join(model, "robustness_report.json")
    if not os.path.isfile(path):
        return
    try:
        trained = RobustnessReport.from_json(path).metadata
    except ValueError as error:
        print(f"warning: whether the checkpoint was trained on the same splits is unknown: {error}", file=sys.stderr)
        return
    if trained.get("dataset") != data["dataset"]:
        return
    differing = [
        f"{name} {trained['splitting'].get(name)} -> {data['splitting'][name]}"
        for name in ("validation_size", "test_size", "split_seed")
        if trained.get("splitting") and trained["splitting"].get(name) != data["splitting"][name]
    ]
    if differing:
        print(
            f"warning: the checkpoint was trained on other splits of {data['dataset']} ({', '.join(differing)}): where "
            "splits are made from train, it may have seen the images it is measured on.",
            file=sys.stderr,
        )
