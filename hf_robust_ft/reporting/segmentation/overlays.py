"""Overlays: an image and its prediction, its adversarial image and the prediction of that, side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch
from torch import Tensor, nn

from hf_robust_ft.attacks import APGD, attack_mode
from hf_robust_ft.attacks.dense_losses import ignored_as_negative
from hf_robust_ft.attacks.pixels import PixelSpace
from hf_robust_ft.attacks.segmenter import PixelSegmenter
from hf_robust_ft.attacks.threat_model import ThreatModel
from hf_robust_ft.evaluation.batches import stack_masks
from hf_robust_ft.provenance.class_names import name_of
from hf_robust_ft.reporting.example_pairs import drawable
from hf_robust_ft.reporting.examples import remove_examples
from hf_robust_ft.reporting.model_card import EXAMPLES

# Paul Tol's "muted" colours, told apart by everyone; more classes than colours take them again.
COLOURS = ("#cc6677", "#332288", "#ddcc77", "#117733", "#88ccee", "#882255", "#44aa99", "#999933", "#aa4499", "#dddddd")
OPACITY = 0.75
SHOWN_CLASSES = 12  # in a legend


def draw_overlays(
    model: nn.Module,
    pixel_space: PixelSpace,
    dataset: Any,
    folder: str | Path,
    *,
    count: int,
    ignore_index: int | None,
    **how: Any,
) -> None:
    """Strips of `count` images of a dataset, drawn from a fixed seed, into `examples` in `folder`.

    Args:
        dataset: map-style, of `pixel_values` (C, H, W) and `labels` (H', W'), all of one size.
        ignore_index: the label of pixels that count nowhere.
        how: of `save_overlays`.
    """
    drawn = np.random.default_rng(0).permutation(len(dataset))[:count]
    batch = stack_masks([dataset[int(index)] for index in drawn])
    labels = ignored_as_negative(batch["labels"], ignore_index)
    segmenter = PixelSegmenter(model, pixel_space, tuple(labels.shape[-2:]))
    save_overlays(segmenter, pixel_space.clipped_pixels(batch["pixel_values"]), labels, Path(folder, EXAMPLES), **how)


def save_overlays(
    segmenter: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    folder: str | Path,
    *,
    threat_model: ThreatModel,
    attack: APGD,
    class_names: Sequence[str] | Mapping[int, str],
) -> list[Path]:
    """Attack images at eps_g and write one strip an image, `example_000.png`, ..., into `folder`.

    The class with the most labelled pixels is left uncoloured, as background.

    Args:
        segmenter: a `PixelSegmenter`.
        pixels: (N, C, H, W) in [0, 1].
        labels: (N, H', W'), below 0 where a pixel counts nowhere.
        attack: as in the evaluation.
        class_names: by index.

    Returns:
        The strips; those of an earlier call are gone.
    """
    folder = Path(folder)
    remove_examples(folder)
    if not len(labels):
        return []
    device = next((parameter.device for parameter in segmenter.parameters()), pixels.device)
    x, y = pixels.to(device), labels.to(device)
    with attack_mode(segmenter):
        found = attack(segmenter, x, y, threat_model)
        with torch.no_grad():
            clean, adversarial = (segmenter(each).argmax(1).cpu() for each in (x, found.adversarial))
    counted = labels[labels >= 0]
    background = int(counted.bincount().argmax()) if len(counted) else -1
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"example_{number:03d}.png" for number in range(len(labels))]
    for at, file in enumerate(files):
        images = [drawable(each[at].cpu().float().numpy()) for each in (pixels, found.adversarial)]
        predictions = [clean[at], adversarial[at]]
        _plot(images, predictions, labels[at].cpu(), str(threat_model), class_names, background, file)
    return files


def _plot(
    images: Sequence[np.ndarray],
    predictions: Sequence[Tensor],
    labels: Tensor,
    threat: str,
    class_names: Sequence[str] | Mapping[int, str],
    background: int,
    path: Path,
) -> None:
    named = ((images[0], "image", "its prediction"), (images[1], f"attacked, {threat}", "prediction of that"))
    figure, axes = plt.subplots(1, 4, figsize=(9.6, 3.1), layout="constrained")
    for (image, title, of_prediction), prediction, pair in zip(named, predictions, (axes[:2], axes[2:]), strict=True):
        shown = np.broadcast_to(np.moveaxis(image, 0, -1).clip(0, 1), (*image.shape[-2:], 3))
        pair[0].imshow(shown)
        pair[0].set_title(title, fontsize=8, parse_math=False)
        pair[1].imshow(overlaid(shown, prediction.numpy(), background))
        right = (prediction == labels)[labels >= 0].float().mean().item()
        pair[1].set_title(f"{of_prediction}: {right:.1%} of pixels right", fontsize=8, parse_math=False)
    for axis in axes:
        axis.axis("off")
    present = sorted({int(each) for prediction in predictions for each in prediction.unique()} - {background})
    patches = [Patch(color=colour_of(each), label=name_of(class_names, each)) for each in present[:SHOWN_CLASSES]]
    if patches:
        figure.legend(handles=patches, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(figure)


def overlaid(image: np.ndarray, mask: np.ndarray, background: int) -> np.ndarray:
    """An image (H, W, 3) in [0, 1] in grey, under the colours of the classes of a mask (H', W').

    Args:
        background: the class that gets no colour.
    """
    rows, columns = (
        (np.arange(size) * of / size).astype(int) for size, of in zip(image.shape[:2], mask.shape, strict=True)
    )
    mask = mask[rows][:, columns]
    grey = np.repeat(image.mean(-1, keepdims=True), 3, axis=-1)
    colours = np.array([colour_of(each) for each in range(int(mask.max()) + 1)])[mask]
    covered = (mask != background)[..., None] * OPACITY
    return grey * (1 - covered) + colours * covered


def colour_of(label: int) -> tuple[float, float, float]:
    """The colour of a class, RGB in [0, 1]."""
    return to_rgb(COLOURS[label % len(COLOURS)])
