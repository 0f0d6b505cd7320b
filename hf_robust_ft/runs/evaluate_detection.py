"""One evaluation of a detection model from names to a report with its evidence; `hf-robust-ft evaluate` of boxes."""

import os
from typing import Any

import torch
from accelerate import PartialState

from hf_robust_ft.attacks.pixels import PixelSpace
from hf_robust_ft.attacks.threat_model import ThreatModel
from hf_robust_ft.data.source_hashes import source_digest
from hf_robust_ft.evaluation.detection.evaluate import evaluate_detection
from hf_robust_ft.evaluation.detection.report import DetectionReport
from hf_robust_ft.evaluation.detection.settings import check
from hf_robust_ft.models.detection import load_detection_model
from hf_robust_ft.provenance.choices import check_choice
from hf_robust_ft.provenance.record import environment_facts
from hf_robust_ft.provenance.weight_hashes import hash_weight_files
from hf_robust_ft.reporting import write_evidence
from hf_robust_ft.runs.arguments import DataArguments
from hf_robust_ft.runs.model_names import describe_model
from hf_robust_ft.runs.task_arguments import DETECTION
from hf_robust_ft.runs.tasks import TASKS, refuse

NOT_OF_BOXES = ("architecture", "eps_distributions", "autoattack", "store_examples", "save_examples")


def measure_detection(
    options: Any, data_args: DataArguments, command: str, device: torch.device, state: PartialState
) -> DetectionReport:
    """Load, measure and, with an `output_dir`, write.

    Args:
        options: `EvaluationArguments`.

    Raises:
        ValueError: options that mean nothing here, or what `evaluate_detection`, `load_detection_dataset` or
            `load_detection_model` refuse.
        ImportError: what measures mAP is not installed.
    """
    refuse(options, NOT_OF_BOXES, DETECTION)
    refuse(data_args, ("streaming", "skip_bad_images"), DETECTION)
    if options.protocol != "paper" or options.attack_loss not in ("ce", "set_loss"):
        raise ValueError(
            f"A detection model is measured by one attack on its own loss; leave out protocol={options.protocol!r} and "
            f"attack_loss={options.attack_loss!r}."
        )
    asked = options.asked_steps
    settings = check(
        ThreatModel(options.norm, options.eps),
        epsilons=options.epsilons,
        attack_steps=int(asked) if str(asked).isdigit() else asked,
    )
    task = TASKS[DETECTION]
    model, processor = load_detection_model(options.model, image_size=options.image_size, **options.loading_options())
    splits = task.load_data(data_args, require_train=False)
    check_choice("split", options.split, splits)
    fitted, known = task.fitted(splits, model.config, processor)
    images = task.at_most(fitted[options.split], data_args.max_eval_samples, data_args.split_seed, "max_eval_samples")
    report = evaluate_detection(
        model.to(device),
        task.inputs(images, processor, known, "none", False),
        threat_model=settings.threat_model,
        pixel_space=PixelSpace.from_processor(processor),
        epsilons=settings.epsilons,
        attack=settings.attack,
        batch_size=options.batch_size,
    )
    hashes = {"weights_sha256": hash_weight_files(options.model)} if os.path.isdir(options.model) else {}
    report = report.with_metadata(
        **describe_model(options.model),
        **data_args.describe(splits),
        **hashes,
        split=options.split,
        source_digest=source_digest(images),
        transforms=task.describe(processor, augmentation=None),
        **environment_facts(),
        command=command,
    )
    if options.output_dir and state.is_main_process:
        write_evidence(report, options.output_dir)
    return report
