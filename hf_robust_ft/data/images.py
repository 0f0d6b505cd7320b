"""Image files of any kind -> upright 8-bit RGB, or an error that names the file.

Conversion, the same for training and evaluation:

- EXIF orientation is applied; of an animation the first frame is taken.
- Transparency (RGBA, LA, palettes and colour keys) is blended onto white. Dropping it, as `convert("RGB")` does, would
  show the colours hidden under transparent pixels.
- 16-bit greyscale is scaled by 255/65535. Pillow's own conversion clips it at 255: nearly all white.
- 32-bit integers hold 0..65535 in PNG and PPM files; elsewhere the range of the values tells (0..255, or 0..65535).
  Floats are 0..1 or 0..255. Other ranges are refused, since nothing says what white is.
- CMYK is converted by Pillow's formula; colour profiles are not applied.
"""

import os
from io import BytesIO
from typing import Any

import numpy as np
from datasets import Image
from PIL import Image as PILImage
from PIL import ImageOps

BACKGROUND = (255, 255, 255)


class UndecodableImageError(ValueError):
    """An image that cannot be read: truncated, missing, not an image, or of an unknown range of values."""


class RGBImage(Image):
    """A `datasets.Image` that decodes by `decode_rgb`; its `id` starts messages. Saved as plain `Image`."""

    def __eq__(self, other: object) -> bool:  # the parts of one dataset can then be put together again
        return isinstance(other, Image) and (self.mode, self.decode) == (other.mode, other.decode)

    __hash__ = None

    def decode_example(self, value: Any, token_per_repo_id: dict | None = None) -> PILImage.Image:
        try:
            return decode_rgb(value, token_per_repo_id)
        except UndecodableImageError as error:
            raise UndecodableImageError(f"{self.id + ': ' if self.id else ''}{error}") from error.__cause__


def decode_rgb(value: Any, token_per_repo_id: dict | None = None) -> PILImage.Image:
    """An upright 8-bit RGB image.

    Args:
        value: an undecoded cell of an image column, `{"bytes": ..., "path": ...}`, or a PIL image.
        token_per_repo_id: of remote paths, as `datasets` passes it.

    Raises:
        UndecodableImageError: naming the file, if it is known, and the reason.
    """
    try:
        if value is None:
            raise ValueError("the cell is empty")
        return to_rgb(value if isinstance(value, PILImage.Image) else _open(value, token_per_repo_id))
    except MemoryError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, EOFError, struct.error, zlib.error, ...
        raise UndecodableImageError(f"{file_of(value)}: {_reason(error)}") from error


def file_of(value: Any) -> str:
    """What names an image in messages: its path, as far as the dataset keeps one."""
    path = value.get("path") if isinstance(value, dict) else getattr(value, "filename", None)
    return str(path) if path else "image without a file name"


def image_bytes(value: dict) -> bytes | None:
    """The encoded bytes of an undecoded cell; None for a remote path, which only `datasets` can read."""
    if value["bytes"] is not None:
        return value["bytes"]
    path = value["path"]
    if path is None:
        raise ValueError("the cell holds neither bytes nor a path")
    if "://" in path:
        return None
    with open(path, "rb") as file:
        return file.read()


def to_rgb(image: PILImage.Image) -> PILImage.Image:
    """The image upright and in 8-bit RGB, by the rules at the top of this file.

    Raises:
        ValueError: integers or floats of a range that does not say what white is.
    """
    file_format = image.format  # a copy has none
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = PILImage.fromarray(_to_eight_bits(image, file_format))
    if image.has_transparency_data:
        if image.mode == "La":  # premultiplied: Pillow converts it to LA only
            image = image.convert("LA")
        image = image.convert("RGBA")
        return PILImage.alpha_composite(PILImage.new("RGBA", image.size, BACKGROUND), image).convert("RGB")
    return image.convert("RGB")


def _to_eight_bits(image: PILImage.Image, file_format: str | None) -> np.ndarray:
    values = np.asarray(image).astype(np.float64)
    low, high = values.min(), values.max()
    if image.mode == "F":
        known = np.isfinite(values).all() and low >= 0 and high <= 255
        white = 1.0 if high <= 1 else 255.0
    else:
        known = low >= 0 and high <= 65535
        is_sixteen_bit = image.mode != "I" or file_format in ("PNG", "PPM")
        white = 65535.0 if is_sixteen_bit or high > 255 else 255.0
    if not known:
        kind = "floats must lie in 0..1 or 0..255" if image.mode == "F" else "integers must lie in 0..65535"
        raise ValueError(f"its values lie in {low:g}..{high:g}; {kind}: rescale the image")
    return np.round(values * (255 / white)).astype(np.uint8)


def _open(value: dict, token_per_repo_id: dict | None) -> PILImage.Image:
    data = image_bytes(value)
    if data is None:
        return Image().decode_example(value, token_per_repo_id)
    image = PILImage.open(BytesIO(data))
    image.load()
    return image


def _reason(error: Exception) -> str:
    if isinstance(error, PILImage.UnidentifiedImageError):
        return "not an image file that Pillow can read"
    if isinstance(error, FileNotFoundError):
        return "the file is not there"
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
