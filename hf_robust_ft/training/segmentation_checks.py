"""What `AdversarialTrainer` refuses of a segmentation model, and what an argument means for one."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hf_robust_ft.attacks import attack_mode
from hf_robust_ft.attacks.losses import LOSSES, get_loss
from hf_robust_ft.evaluation.batches import first_images
from hf_robust_ft.evaluation.convergence import AUTO, STEPS_LIMIT
from hf_robust_ft.provenance.choices import refuse_together

# What the losses of one label an image are of one label a pixel: the same, of each pixel.
OF_PIXELS = {"ce": "pixel_ce", "kl": "pixel_kl"}
OBJECTIVES = ("at", "trades")


def settle_segmentation(args: Any) -> None:
    """Enter the attack's loss of pixels in `args`, and raise for what means nothing with one label a pixel.

    Raises:
        ValueError: naming it, and what to set.
    """
    args.attack_loss = OF_PIXELS.get(args.attack_loss, args.attack_loss)
    if not get_loss(args.attack_loss).dense:
        dense = ", ".join(name for name, loss in LOSSES.items() if loss.dense)
        raise ValueError(
            f"attack_loss={args.attack_loss!r} is of one label an image, and this model has one a pixel. Valid for "
            f"segmentation: {dense}."
        )
    if args.objective not in OBJECTIVES:
        raise ValueError(
            f"objective={args.objective!r} is of one answer an image, and this model gives one a pixel. Valid for "
            f"segmentation: {', '.join(OBJECTIVES)}."
        )
    excluded = (
        ("twins_lambda", args.twins_lambda is not None, "its branches share one classification head"),
        ("autolora", bool(args.autolora), "its rule follows the accuracy of a classifier"),
        ("probe_epochs", args.probe_epochs > 0, "it trains a classifier's linear head"),
        ("label_smoothing_factor", args.label_smoothing_factor != 0, "Trainer's looks for classes on the last axis"),
        ("mixup_alpha", args.mixup_alpha > 0, "it mixes the labels of whole images"),
        ("cutmix_alpha", args.cutmix_alpha > 0, "it mixes the labels of whole images"),
        ("eval_attack_steps", args.eval_attack_steps == AUTO and args.eval_protocol == "paper" and
         args.robust_eval != "no", "evaluate() attacks each batch once: give a number, and let hf-robust-ft evaluate "
         "--attack_steps auto measure the checkpoint"),
        ("eval_attack_steps_limit", args.eval_attack_steps_limit != STEPS_LIMIT and args.eval_protocol != "paper" and
         args.robust_eval != "no", "the attacks of this protocol on masks have steps of their own"),
    )  # fmt: skip
    refuse_together("a segmentation model", args, excluded)


def check_masks_fit(model: nn.Module, inputs: Mapping[str, Any]) -> None:
    """Raise unless the model's own loss takes masks of this size, which differ from the images in size.

    SegFormer, BEiT and DPT resize their logits to the masks; UperNet has them of the images' size.

    Raises:
        ValueError: masks of another shape than the images' (turned, or cropped by themselves), or of a size that the
            loss does not take.
    """
    height, width = inputs["pixel_values"].shape[-2:]
    mask = tuple(inputs["labels"].shape[-2:])
    if mask == (height, width):
        return
    told = f"The masks are {mask[0]} x {mask[1]} pixels and the images {height} x {width} (height x width)"
    if abs(mask[0] * width - mask[1] * height) > max(height, width):
        raise ValueError(
            f"{told}, of another shape: no pixel of the one is one of the other. Crop, turn and resize both together."
        )
    try:
        with torch.no_grad(), attack_mode(model, freeze=False):
            model(**first_images(inputs, 2))
    except (ValueError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError(
            f"{told}, and the loss of {type(model).__name__} does not take them ({error}). Resize the masks to the "
            "images' size with nearest neighbour (InterpolationMode.NEAREST, do_resize of its image processor)."
        ) from error
