"""A cell of a mask column -> class indices (H, W), or an error that says what is wrong with it and what mends it."""

from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from datasets import Image
from PIL import Image as PILImage

from hf_robust_ft.data.images import file_of, image_bytes

IGNORE_INDEX = 255  # of masks that leave pixels out; the default of transformers' losses, too
FROM_COLOURS = (
    "Turn colours into indices first: index = (mask[..., None, :] == palette).all(-1).argmax(-1), with one row of "
    "palette (K, 3) a class"
)


class BadMaskError(ValueError):
    """A mask that cannot be read, or that does not fit its image or the classes."""


def decode_mask(value: Any) -> np.ndarray:
    """The class index of every pixel, as stored; (H, W) of an integer type.

    Args:
        value: an undecoded cell of an image column (`{"bytes": ..., "path": ...}`), a PIL image of one channel (modes
            L, P, 1, I and I;16; of a palette the indices count, not the colours), or rows of integers.

    Raises:
        BadMaskError: no such thing: colours, floats, another number of dimensions, a file that cannot be read.
    """
    try:
        if value is None:
            raise BadMaskError("the cell is empty")
        is_image = isinstance(value, (dict, PILImage.Image))
        mask = _indices(value if isinstance(value, PILImage.Image) else _open(value)) if is_image else np.asarray(value)
    except BadMaskError as error:
        raise BadMaskError(f"{_file_of(value)}: {error}") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise BadMaskError(f"{_file_of(value)}: the mask cannot be read ({error})") from error
    if mask.ndim != 2 or mask.dtype.kind not in "iub":
        raise BadMaskError(
            f"{_file_of(value)}: a mask must be (height, width) class indices, got shape {mask.shape} of {mask.dtype}"
        )
    return mask.astype(np.int64) if mask.dtype.kind == "b" else mask


@dataclass(frozen=True)
class MaskReader:
    """From stored masks to labels, by the classes of a dataset or a model.

    Args:
        num_classes: K; labels are 0 to K - 1.
        ignore_index: of pixels that are left out, in the masks.
        reduce_labels: as image processors have it: 0 is left out, and classes count from 1.
        order: of each class of the dataset the model's; None where they are in one order.
        label_for_ignored: of pixels that are left out, in the labels.
    """

    num_classes: int
    ignore_index: int = IGNORE_INDEX
    reduce_labels: bool = False
    order: tuple[int, ...] | None = None
    label_for_ignored: int = IGNORE_INDEX

    def __call__(self, value: Any) -> np.ndarray:
        """Labels (H, W) int64 of a stored mask.

        Raises:
            BadMaskError: what `decode_mask` refuses, or labels beyond the classes.
        """
        mask = decode_mask(value).astype(np.int64)
        is_ignored = mask == self.ignore_index
        if self.reduce_labels:
            is_ignored |= mask == 0
            mask = mask - 1
        check_labels(np.unique(mask[~is_ignored]), self.num_classes, _file_of(value))
        if self.order is not None:
            mask = np.asarray(self.order)[np.where(is_ignored, 0, mask)]
        return np.where(is_ignored, self.label_for_ignored, mask)


def check_labels(found: np.ndarray, num_classes: int, where: str) -> None:
    """Raise a BadMaskError if some of the labels found are beyond the classes."""
    beyond = [int(label) for label in found if not 0 <= label < num_classes]
    if beyond:
        raise BadMaskError(
            f"{where}: labels {beyond[:5]} are beyond the {num_classes} classes (0 to {num_classes - 1}). If these "
            "pixels are to be left out, name their label: ignore_index; if classes count from 1 and 0 is none, set "
            "reduce_labels; if there are more classes, name them: id2label."
        )


def _open(value: dict) -> PILImage.Image:
    data = image_bytes(value)
    if data is None:
        return Image().decode_example(value)
    image = PILImage.open(BytesIO(data))
    image.load()
    return image


def _indices(image: PILImage.Image) -> np.ndarray:
    if image.mode in ("L", "P", "1", "I") or image.mode.startswith("I;16"):
        return np.asarray(image)
    pixels = np.asarray(image)
    cure = FROM_COLOURS
    if pixels.ndim == 3 and (pixels[..., :3] == pixels[..., :1]).all():
        cure = "Its channels are equal, so mask.convert('L') makes indices of it"
    raise BadMaskError(f"the mask holds colours (mode {image.mode}), not class indices. {cure}")


def _file_of(value: Any) -> str:
    return file_of(value).replace("image without", "mask without") if isinstance(value, dict) else "a mask"
