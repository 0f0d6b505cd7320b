"""What `AdversarialTrainer` refuses of a detection model, and what an argument means for one."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hf_robust_ft.attacks import attack_mode
from hf_robust_ft.attacks.losses import get_loss
from hf_robust_ft.evaluation.batches import first_images
from hf_robust_ft.evaluation.convergence import AUTO
from hf_robust_ft.evaluation.detection.average_precision import check_installed
from hf_robust_ft.provenance.choices import refuse_together

OF_BOXES = {"ce": "set_loss"}  # what the default loss, of one label an image, is of boxes
ASKED = "a detection model"
NOT_PUBLISHED = (
    "detection models are not published from here yet, since nothing checks their figures; the folder that save_model "
    "writes can be uploaded by huggingface_hub's upload_folder"
)


def settle_detection(args: Any) -> None:
    """Enter the attack's loss in `args`, the model's own, and raise for what means nothing with boxes.

    Raises:
        ValueError: naming it, and what to set.
        ImportError: each epoch is to be evaluated, and what measures mAP is not installed.
    """
    args.attack_loss = OF_BOXES.get(args.attack_loss, args.attack_loss)
    if not get_loss(args.attack_loss).given:
        raise ValueError(
            f"attack_loss={args.attack_loss!r} is of classes, and a detection model is attacked by its own loss: leave "
            "it out, or set attack_loss='set_loss'."
        )
    if args.objective != "at":
        raise ValueError(
            f"objective={args.objective!r} compares answers of one class an image, and this model answers with sets of "
            "boxes. Valid for object detection: at."
        )
    no_one_right = "no one image counts as fooled, or not"
    excluded = (
        ("eps_schedule", args.needs_sample_ids, f"it follows each image's errors, and {no_one_right}"),
        ("attack_guard", args.attack_guard is not None, f"it counts errors, and {no_one_right}"),
        ("eval_protocol", args.eval_protocol != "paper", "boxes are measured by one attack only"),
        ("eval_attack_steps", args.eval_attack_steps == AUTO, f"it asks which images fall; {no_one_right}"),
        ("twins_lambda", args.twins_lambda is not None, "its branches share one classification head"),
        ("autolora", bool(args.autolora), "its rule follows the accuracy of a classifier"),
        ("probe_epochs", args.probe_epochs > 0, "it trains a classifier's linear head"),
        ("label_smoothing_factor", args.label_smoothing_factor != 0, "Trainer's looks for classes on the last axis"),
        ("mixup_alpha", args.mixup_alpha > 0, "it mixes the labels of whole images"),
        ("cutmix_alpha", args.cutmix_alpha > 0, "it mixes the labels of whole images"),
        ("torch_compile", bool(args.torch_compile), "the matching of boxes waits for the device at every step"),
        ("push_to_hub", bool(args.push_to_hub), NOT_PUBLISHED),
    )  # fmt: skip
    refuse_together(ASKED, args, excluded)
    if args.eval_strategy != "no":
        check_installed()


def check_detecting(trainer: Any) -> None:
    """Raise for a loss that the attack would not climb, and for several processes.

    Raises:
        ValueError: naming it.
    """
    if trainer.compute_loss_func is not None:
        raise ValueError(
            "a detection model and compute_loss_func exclude each other: the attack climbs the model's own loss. Set "
            "model.loss_function to yours, which both then take, or leave it out."
        )
    processes = trainer.args.world_size
    if processes > 1 or trainer.args.n_gpu > 1 or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ValueError(
            f"A detection model is trained under attack in one process on one device, got {processes} processes and "
            f"{trainer.args.n_gpu} devices: its loss waits for all processes at every image. Start it without "
            "torchrun, FSDP and DeepSpeed, and show it one device."
        )


def check_boxes_fit(model: nn.Module, inputs: Mapping[str, Any]) -> None:
    """Raise unless the model's own loss takes such a batch.

    Raises:
        ValueError: with what the model said.
    """
    try:
        with torch.no_grad(), attack_mode(model, freeze=False):
            model(**first_images(inputs, 2))
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError(
            f"The loss of {type(model).__name__} does not take the first batch ({type(error).__name__}: {error})."
        ) from error
