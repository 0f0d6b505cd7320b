"""Predicted and true classes as arrays: what is no class is refused, neither counted nor made into one."""

from collections.abc import Sequence
from numbers import Real

import numpy as np

LARGEST = np.iinfo(np.int64).max


def check_classes(predictions: Sequence[Sequence[int]], references: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Predictions as (n_samples, E) and references as (n_samples,), both int64.

    Args:
        predictions: the class predicted for each image at each eps, lists or anything numpy makes an array of.
        references: the true classes. Whole numbers of at least 0, both; 2.0 is one.

    Raises:
        ValueError: no samples, rows of different lengths, shapes that do not match, or what is no class: a fraction
            (a score), NaN, a negative number (-100 marks what a loss ignores), True, a text, None.
    """
    predictions, references = _as_array(predictions, "predictions"), _as_array(references, "references")
    if predictions.ndim != 2 or references.shape != predictions.shape[:1] or references.size == 0:
        raise ValueError(
            "predictions must be (n_samples, n_epsilons) and references (n_samples,) with at least one sample, "
            f"got {predictions.shape} and {references.shape}."
        )
    return as_indices(predictions, "predictions"), as_indices(references, "references")


def _as_array(values: Sequence, name: str) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError:
        widths = sorted({len(row) if np.iterable(row) else 0 for row in values})
        told = f"{name} must have rows of one length, one prediction per eps; got rows of {widths}."
        raise ValueError(told) from None


def as_indices(array: np.ndarray, name: str) -> np.ndarray:
    """An array of classes as int64; a ValueError that calls it `name` for what is no class."""
    is_class = _is_class(array)
    if is_class.all():
        return array.astype(np.int64, copy=False)
    where = tuple(np.argwhere(~is_class)[0].tolist())
    place, value = "".join(f"[{index}]" for index in where), array[where]
    value = value.item() if isinstance(value, np.generic) else value
    cure = "Of scores or logits, take the argmax."
    if isinstance(value, Real) and value < 0:
        cure = "Leave those samples out: -100 marks what a loss ignores, and is no class."
    raise ValueError(
        f"{name} must be class indices, whole numbers of at least 0; got {name}{place} = {value!r} "
        f"({(~is_class).sum()} of {array.size} are none). {cure}"
    )


def _is_class(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind in "iu":
        return (array >= 0) & (array <= LARGEST)
    if array.dtype.kind == "f":
        return (array >= 0) & (array < 2**53) & (array == np.floor(array))  # above, floats skip whole numbers
    is_index = [type(value) is int and 0 <= value <= LARGEST for value in array.flat]
    return np.reshape(is_index, array.shape)
