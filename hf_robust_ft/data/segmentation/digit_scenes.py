"""Scenes of scikit-learn's handwritten digits with their masks: real data for segmentation without a network.

Each scene is a textured canvas with 2 to 4 digits of several sizes and inks that do not overlap. Which digits train,
validate and test is drawn by class first, so no digit is in scenes of two splits.
"""

from typing import NamedTuple

import numpy as np
from datasets import Dataset, Features, Image
from PIL import Image as PILImage

from hf_robust_ft.data.digits import digit_arrays

CLASS_NAMES = ("background", *(str(digit) for digit in range(10)))
SCENES = {"train": 1024, "validation": 128, "test": 256}
SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}  # of the digits
SIDE = 64  # of a canvas, in pixels
SIDES = (18, 28)  # of a digit
COUNTS = (2, 4)  # digits in a scene
CONTRAST = 0.45  # between ink and canvas, at least
_TRIES = 40  # to place a digit where none is


class Scene(NamedTuple):
    """What was composed.

    Attributes:
        canvas: (SIDE, SIDE, 3) uint8.
        mask: (SIDE, SIDE) uint8, class indices, 0: background. A pixel belongs to a digit where its ink covers at least
            two fifths of it.
        digits: of each, what it is, and the box [x, y, width, height] around its pixels.
    """

    canvas: np.ndarray
    mask: np.ndarray
    digits: list[tuple[int, list[int]]]


def load_digit_scenes(seed: int = 0) -> dict[str, Dataset]:
    """The splits `train`, `validation` and `test` with `image` (64 x 64 RGB) and `mask` (class indices, 0: background).

    Args:
        seed: of the digits' split and of the scenes.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    return {name: _pairs(scenes) for name, scenes in compose_splits(seed).items()}


def compose_splits(seed: int = 0) -> dict[str, list[Scene]]:
    """The scenes of `train`, `validation` and `test`.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    grey, labels = digit_arrays()
    inks = grey.astype(np.float32) / 255
    rng = np.random.default_rng(seed)
    parts: dict[str, list[int]] = {name: [] for name in SCENES}
    ends = np.cumsum(list(SHARES.values()))[:-1]
    for digit in range(10):
        members = rng.permutation(np.flatnonzero(labels == digit))
        for part, drawn in zip(parts.values(), np.split(members, (ends * len(members)).astype(int)), strict=True):
            part.extend(drawn.tolist())
    return {name: [_scene(inks, labels, parts[name], rng) for _ in range(count)] for name, count in SCENES.items()}


def _pairs(scenes: list[Scene]) -> Dataset:
    columns = {
        "image": [PILImage.fromarray(scene.canvas) for scene in scenes],
        "mask": [PILImage.fromarray(scene.mask) for scene in scenes],
    }
    return Dataset.from_dict(columns, features=Features({"image": Image(), "mask": Image()}))


def _scene(inks: np.ndarray, labels: np.ndarray, members: list[int], rng: np.random.Generator) -> Scene:
    canvas, mask = _texture(rng), np.zeros((SIDE, SIDE), dtype=np.uint8)
    digits: list[tuple[int, list[int]]] = []
    is_taken = np.zeros((SIDE, SIDE), dtype=bool)
    for index in rng.choice(members, rng.integers(COUNTS[0], COUNTS[1] + 1), replace=False):
        side = int(rng.integers(SIDES[0], SIDES[1] + 1))
        corners = rng.integers(0, SIDE - side + 1, size=(_TRIES, 2))
        free = (corner for corner in corners if not is_taken[_window(corner, side)].any())
        corner = next(free, None)
        if corner is None:  # the canvas is full
            continue
        window = _window(corner, side)
        is_taken[window] = True
        cover = _enlarged(inks[index], side)
        canvas[window] += cover[..., None] * (_ink(canvas[window].mean((0, 1)), rng) - canvas[window])
        mask[window][cover >= 0.4] = labels[index] + 1
        digits.append((int(labels[index]), _box(corner, cover >= 0.4)))
    return Scene(np.round(255 * canvas.clip(0, 1)).astype(np.uint8), mask, digits)


def _box(corner: np.ndarray, is_digit: np.ndarray) -> list[int]:
    """The box [x, y, width, height] around a digit's pixels (side, side) in a window with this top left corner."""
    top, left = corner.tolist()
    rows, columns = np.flatnonzero(is_digit.any(1)), np.flatnonzero(is_digit.any(0))
    return [left + int(columns[0]), top + int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]


def _window(corner: np.ndarray, side: int) -> tuple[slice, slice]:
    top, left = corner.tolist()
    return slice(top, top + side), slice(left, left + side)


def _enlarged(ink: np.ndarray, side: int) -> np.ndarray:
    """An 8 x 8 digit at `side` pixels; values in [0, 1]."""
    resized = PILImage.fromarray(ink).resize((side, side), PILImage.Resampling.BICUBIC)
    return np.asarray(resized).clip(0, 1)


def _texture(rng: np.random.Generator) -> np.ndarray:
    """A colour with smooth variation of several scales and grain; (SIDE, SIDE, 3) float32 near [0, 1]."""
    canvas = np.full((SIDE, SIDE, 3), rng.uniform(0.15, 0.85, 3), dtype=np.float32)
    for cells, strength in ((3, 0.10), (9, 0.05)):
        noise = rng.normal(0, strength, (cells, cells, 3)).astype(np.float32)
        smooth = [PILImage.fromarray(each).resize((SIDE, SIDE), PILImage.Resampling.BICUBIC) for each in
                  np.moveaxis(noise, -1, 0)]  # fmt: skip
        canvas += np.stack([np.asarray(each) for each in smooth], axis=-1)
    return canvas + rng.normal(0, 0.02, canvas.shape).astype(np.float32)


def _ink(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A colour that stands out from the canvas's mean colour (3,)."""
    inks = rng.uniform(0, 1, (64, 3)).astype(np.float32)
    contrast = np.abs(inks - canvas).mean(1)
    return inks[np.argmax(contrast >= CONTRAST) if (contrast >= CONTRAST).any() else np.argmax(contrast)]
