"""What benchmarks share that measure one checkpoint on one dataset: their options, and what these name."""

import argparse
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hf_robust_ft.attacks import use_fast_memory_format
from hf_robust_ft.attacks.pixels import PixelSpace
from hf_robust_ft.data import align_labels, load_image_dataset, with_pixel_values
from hf_robust_ft.evaluation.batches import stack_examples
from hf_robust_ft.models import load_image_classifier
from hf_robust_ft.runs.arguments import at_most


class Checkpoint(NamedTuple):
    """A model and the images that it is measured on.

    Args:
        model: in its fast memory format, on `device`.
        memory_format: that one's name.
        space: how its pixels are normalised.
        pixels: (N, C, H, W) in [0, 1], of the test split, each class by its share.
        labels: (N,).
    """

    model: nn.Module
    memory_format: str
    space: PixelSpace
    pixels: Tensor
    labels: Tensor


def checkpoint_parser(description: str, *, eps: str, images: int) -> argparse.ArgumentParser:
    """A parser that knows the checkpoint, the dataset, the norm and the budget.

    Args:
        eps, images: defaults; eps in pixel units of [0, 1].
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", required=True, help="Checkpoint folder or Hub id.")
    parser.add_argument("--dataset", default="digits", help="As in hf-robust-ft evaluate.")
    parser.add_argument("--norm", default="Linf")
    parser.add_argument("--eps", default=eps)
    parser.add_argument("--images", type=int, default=images)
    return parser


def load_checkpoint(options: argparse.Namespace, device: torch.device | str = "cpu") -> Checkpoint:
    """What the options of `checkpoint_parser` name.

    Raises:
        ValueError: what loading refuses.
    """
    model, processor = load_image_classifier(options.model)
    model.to(device)
    memory_format = use_fast_memory_format(model)
    space = PixelSpace.from_processor(processor)
    data = align_labels(load_image_dataset(options.dataset)["test"], model.config)
    batch = stack_examples(list(with_pixel_values(at_most(data, options.images, 0, "images"), processor)))
    pixels = space.clipped_pixels(batch["pixel_values"])
    return Checkpoint(model, memory_format, space, pixels.to(device), batch["labels"].to(device))
