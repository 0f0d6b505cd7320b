"""One evaluation of a segmentation model from names to a report with its evidence; `hf-robust-ft evaluate` of masks."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedModel

from hf_robust_ft.attacks.pixels import PixelSpace
from hf_robust_ft.attacks.threat_model import ThreatModel
from hf_robust_ft.data.source_hashes import source_digest
from hf_robust_ft.evaluation.protocols import evaluation_attack
from hf_robust_ft.evaluation.results_store import BATCHES
from hf_robust_ft.evaluation.segmentation.evaluate import evaluate_segmentation
from hf_robust_ft.evaluation.segmentation.report import SegmentationReport
from hf_robust_ft.models.segmentation import load_segmentation_model
from hf_robust_ft.provenance.choices import check_choice
from hf_robust_ft.provenance.class_names import class_names
from hf_robust_ft.provenance.record import environment_facts
from hf_robust_ft.provenance.weight_hashes import hash_weight_files
from hf_robust_ft.reporting import write_evidence
from hf_robust_ft.reporting.segmentation.overlays import draw_overlays
from hf_robust_ft.runs.arguments import DataArguments
from hf_robust_ft.runs.model_names import describe_model
from hf_robust_ft.runs.task_arguments import SEGMENTATION
from hf_robust_ft.runs.tasks import TASKS, refuse

CLASSIFIERS_OWN = ("architecture", "eps_distributions", "autoattack", "store_examples")
LOSSES_OF_MASKS = {"ce": "pixel_ce"}  # what the losses of one label an image are of one label a pixel


def measure_segmentation(
    options: Any, data_args: DataArguments, command: str, device: torch.device, state: PartialState
) -> SegmentationReport:
    """Load, measure and, with an `output_dir`, write.

    Args:
        options: `EvaluationArguments`.

    Raises:
        ValueError: options that mean nothing here, or what `evaluate_segmentation`, `load_segmentation_dataset` or
            `load_segmentation_model` refuse.
    """
    refuse(options, CLASSIFIERS_OWN)
    refuse(data_args, ("streaming",))
    loss = LOSSES_OF_MASKS.get(options.attack_loss, options.attack_loss)
    attack = evaluation_attack(loss=loss, norm=options.norm)
    by_protocol = options.protocol != "paper"
    if by_protocol and loss != "pixel_ce":
        raise ValueError(
            f"protocol {options.protocol} has its own losses: leave attack_loss={options.attack_loss!r} out."
        )
    threat_model = ThreatModel(options.norm, options.eps)
    model, processor, images, splits, known = load_segmenter_and_images(options, data_args)
    dataset = TASKS[SEGMENTATION].inputs(images, processor, known, "none", False)
    space = PixelSpace.from_processor(processor)
    report = evaluate_segmentation(
        model.to(device),
        dataset,
        threat_model=threat_model,
        pixel_space=space,
        epsilons=options.epsilons,
        attack=None if by_protocol else attack,
        attack_steps=options.asked_steps,
        attack_steps_limit=options.attack_steps_limit,
        protocol=options.protocol,
        checks=options.trust_checks,
        class_names=class_names(model.config),
        ignore_index=known.label_for_ignored,
        batch_size=options.batch_size,
        results_dir=Path(options.output_dir, BATCHES) if options.output_dir else None,
    )
    hashes = {"weights_sha256": hash_weight_files(options.model)} if os.path.isdir(options.model) else {}
    report = report.with_metadata(
        **describe_model(options.model),
        **data_args.describe(splits),
        **hashes,
        split=options.split,
        source_digest=source_digest(images),
        transforms=TASKS[SEGMENTATION].describe(processor, augmentation=None),
        **environment_facts(),
        command=command,
    )
    if options.output_dir and state.is_main_process:
        attack = replace(attack, steps=report.attacks[0]["steps"])
        how = {"threat_model": threat_model, "attack": attack, "class_names": class_names(model.config)}
        how |= {"ignore_index": known.label_for_ignored, "count": options.save_examples}
        draw = partial(draw_overlays, model, space, dataset, options.output_dir, **how)
        write_evidence(report, options.output_dir, examples=draw if options.save_examples else None)
    return report


def load_segmenter_and_images(options: Any, data_args: DataArguments) -> tuple[PreTrainedModel, Any, Dataset, Any, Any]:
    """The model, its image processor, the pairs to measure it on, all splits, and what makes labels of the masks.

    Masks are reduced as the checkpoint's image processor says, unless the options do.

    Raises:
        ValueError: an unknown split, or what `load_segmentation_dataset` or `load_segmentation_model` refuse.
    """
    named = options.loading_options()
    model, processor = load_segmentation_model(options.model, image_size=options.image_size, **named)
    task = TASKS[SEGMENTATION]
    reduces = bool(getattr(processor, "do_reduce_labels", False))
    splits = task.load_data(data_args, reduce_labels=reduces, require_train=False)
    check_choice("split", options.split, splits)
    fitted, known = task.fitted(splits, model.config, processor)
    images = task.at_most(fitted[options.split], data_args.max_eval_samples, data_args.split_seed, "max_eval_samples")
    return model, processor, images, splits, known
