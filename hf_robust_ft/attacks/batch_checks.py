"""Is this batch one an attack can work on? Each check reads values, so it belongs where they are on the CPU."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_robust_ft.attacks.normalisation_checks import check_normalisation
from hf_robust_ft.attacks.pixels import PixelSpace

FEW = 0.2  # share of values outside [0, 1] up to which the normalisation itself is likely right
OVERSHOOT = 0.5  # bicubic and lanczos kernels pass white and black by less


def check_batch(
    batch: Any,
    pixel_space: PixelSpace,
    num_labels: int | None = None,
    *,
    first: int | None = None,
    labels: Callable[..., None] | None = None,
) -> None:
    """Raise a ValueError naming what is wrong with a batch of `pixel_values` (N, C, H, W) and `labels` (N,).

    Images are named by their index in the batch; with `first`, the index of the batch's first, by that in the data.
    Labels of another kind are checked by `labels` in place of `check_labels`.
    """
    keys = list(batch) if isinstance(batch, Mapping) else None
    if keys is None or not {"pixel_values", "labels"} <= set(keys):
        held = f"the keys {keys}" if keys is not None else f"a {type(batch).__name__}"
        raise ValueError(
            f"A batch must hold 'pixel_values' and 'labels', got {held}. Set a transform that makes both, and a "
            "data_collator that stacks them (with a lazy transform also remove_unused_columns=False)."
        )
    check_pixel_values(batch["pixel_values"], pixel_space, first)
    (labels or check_labels)(batch["labels"], len(batch["pixel_values"]), num_labels, first)


def check_first_batch(
    batch: Any,
    pixel_space: PixelSpace,
    num_labels: int | None = None,
    *,
    first: int | None = None,
    labels: Callable[..., None] | None = None,
) -> None:
    """As `check_batch`, and whether the images are normalised by the stated map, which all of a data set's are or not.

    Raises:
        ValueError: as `check_batch` and `check_normalisation` do.
    """
    check_batch(batch, pixel_space, num_labels, first=first, labels=labels)
    check_normalisation(batch["pixel_values"], pixel_space)


def check_pixel_values(pixel_values: Tensor, pixel_space: PixelSpace, first: int | None = None) -> None:
    """Raise a ValueError unless undoing the normalisation gives finite pixels in [0, 1], up to rounding."""
    if not isinstance(pixel_values, Tensor) or not pixel_values.is_floating_point():
        got = pixel_values.dtype if isinstance(pixel_values, Tensor) else type(pixel_values).__name__
        raise ValueError(f"pixel_values must be a float tensor, the image processor's output; got {got}.")
    if pixel_values.ndim != 4 or pixel_values.shape[1] != len(pixel_space.mean):
        raise ValueError(
            f"pixel_values must have shape (N, {len(pixel_space.mean)}, H, W), got {tuple(pixel_values.shape)}. For "
            "other channels than 3 give one mean and std each: pixel_space=PixelSpace(mean=(...), std=(...)), zeros "
            "and ones where nothing is normalised."
        )
    pixels = pixel_space.to_pixels(pixel_values)
    per_image = pixels.flatten(1)
    finite = per_image.isfinite().all(1)
    if not finite.all():
        raise ValueError(f"pixel_values of {name_image(~finite, first)} are NaN or infinite.")
    tolerance = pixel_space.tolerance(pixel_values.dtype)
    outside = (per_image.amin(1) < -tolerance) | (per_image.amax(1) > 1 + tolerance)
    if outside.any():
        raise ValueError(_out_of_range(pixels, pixel_space, tolerance, name_image(outside, first)))


def _out_of_range(pixels: Tensor, pixel_space: PixelSpace, tolerance: float, image: str) -> str:
    """What is wrong with `pixels`, and the likely cause: another normalisation moves most values, a step in it few."""
    low, high = (value.item() for value in pixels.aminmax())
    share = ((pixels < -tolerance) | (pixels > 1 + tolerance)).float().mean().item()
    seen = (
        f"undoing (pixel - mean) / std with mean={pixel_space.mean} and std={pixel_space.std} gives pixels from "
        f"{low:.4g} to {high:.4g} instead of [0, 1] ({image} is the first outside; {100 * share:.3g} % of the values)."
    )
    cure = (
        "Normalise with the checkpoint's own image_mean and image_std, or pass the map in use: "
        "pixel_space=PixelSpace(...)."
    )
    if share > FEW:
        return f"pixel_values are not the image processor's normalisation: {seen} {cure}"
    causes = (
        "RandomErasing, noise or another change of values after Normalize: put it before, and keep to [0, 1] "
        "(timm's create_transform: re_mode='const', or re_prob=0)."
    )
    if low >= -OVERSHOOT and high <= 1 + OVERSHOOT:
        causes = (
            "a float image resized with bicubic or lanczos, which overshoot (resize PIL or uint8 images instead, or "
            f"clamp(0, 1) between Resize and Normalize); or {causes}"
        )
    return f"pixel_values leave the range of pixels: {seen} So few do after {causes} If there is none of these: {cure}"


SEVERAL_LABELS = (
    "Several labels an image (multi-label classification) have no one answer that an attack could turn: give each "
    "image one class index, and train one model of exclusive classes, or one of two classes for each label."
)


def check_labels(labels: Tensor, num_images: int, num_labels: int | None = None, first: int | None = None) -> None:
    """Raise a ValueError unless `labels` is an integer tensor (N,) with values in 0..K-1."""
    if not isinstance(labels, Tensor) or labels.shape != (num_images,) or labels.dtype != torch.int64:
        got = f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        if isinstance(labels, Tensor) and labels.ndim >= 3:
            got += ", as masks are: for these load the model with AutoModelForSemanticSegmentation"
        if isinstance(labels, Tensor) and labels.ndim == 2 and bool(((labels.double().sum(1) - 1).abs() > 1e-3).any()):
            raise ValueError(f"{SEVERAL_LABELS} Got {got}.")
        raise ValueError(
            f"labels must be one class index an image, int64 of shape ({num_images},); got {got}. "
            "Cast whole numbers with .long(); shares of classes (mixup, CutMix) have no one class to attack: leave the "
            "mixing out, or set label_smoothing_factor."
        )
    bad = labels < 0 if num_labels is None else (labels < 0) | (labels >= num_labels)
    if bad.any():
        count = "K" if num_labels is None else num_labels
        raise ValueError(
            f"labels must be class indices in 0..{count}-1, got {int(labels[bad][0])} "
            f"({name_image(bad, first)}). Unlabelled images (-1, -100) cannot be attacked: filter them out; for a "
            "wrong class count load the model with num_labels=<number of classes> and ignore_mismatched_sizes=True."
        )


def name_image(bad: Tensor, first: int | None) -> str:
    """The first of the bad images (N,) bool, by name."""
    index = int(bad.nonzero()[0])
    return f"image {index} of the batch" if first is None else f"image {first + index} of the data"


@dataclass(frozen=True)
class CheckedCollator:
    """A data collator that checks the batches of another: on the CPU, in the loader's worker processes.

    So every training batch is checked without waiting for the device.
    """

    collate: Callable[[list], Any]
    pixel_space: PixelSpace
    num_labels: int | None = None
    labels: Callable[..., None] | None = None

    def __call__(self, examples: list) -> Any:
        batch = self.collate(examples)
        check_batch(batch, self.pixel_space, self.num_labels, labels=self.labels)
        return batch
