"""Training on smaller images at first, as AdvXL does (arXiv 2401.04727): a pass costs as many pixels as it sees."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hf_robust_ft.attacks.random_state import random_state_kept
from hf_robust_ft.evaluation.batches import first_images
from hf_robust_ft.training.tasks import CLASSIFICATION

INTERPOLATES = "interpolate_pos_encoding"  # what transformers' ViTs call it


def at_resolution(inputs: Mapping[str, Any], share: float, model: nn.Module) -> dict[str, Any]:
    """The batch with its images at a share of their height and width, rounded; all else stays.

    Each new pixel is a mean of old ones (bilinear, antialiased), so pixels stay in [0, 1]. A model that interpolates
    its position embeddings where it is asked to is asked.
    """
    images = inputs["pixel_values"]
    size = [max(round(share * length), 1) for length in images.shape[-2:]]
    small = F.interpolate(images.float(), size=size, mode="bilinear", antialias=True).to(images.dtype)
    asked = {INTERPOLATES: True} if _interpolates(model) else {}
    return {**inputs, "pixel_values": small, **asked}


def _interpolates(model: nn.Module) -> bool:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # of PEFT's wrapper
    return INTERPOLATES in inspect.signature(inner.forward).parameters


def check_takes_small_images(trainer: Any, inputs: Mapping[str, Any]) -> None:
    """Try two images of a batch at the smaller size.

    Raises:
        ValueError: the model takes no other size than its own.
    """
    share, model, adversary = trainer.args.low_resolution, trainer.model, trainer.adversary
    if share == 1:
        return
    few = at_resolution(first_images(inputs, 2), share, model)
    pixels = adversary.pixel_space.clipped_pixels(few["pixel_values"])
    try:
        with random_state_kept(), adversary.mode(model), torch.no_grad():
            adversary.classifier(model, few)(pixels)
    except (RuntimeError, ValueError, AssertionError) as error:
        height, width = pixels.shape[-2:]
        raise ValueError(
            f"low_resolution={share:g} makes images of {height} x {width} pixels, which {type(model).__name__} does "
            f"not take ({error}). Leave it out, or train a network that takes images of any size."
        ) from error


def check_has_small_images(trainer: Any) -> None:
    """Raise a ValueError where the labels would need the images' size."""
    if trainer.args.low_resolution < 1 and trainer.task is not CLASSIFICATION:
        raise ValueError(
            f"low_resolution={trainer.args.low_resolution:g} is for image classification, and "
            f"{type(trainer.model).__name__} is for {trainer.task.name}, whose labels have the image's size. Leave it "
            "out."
        )
