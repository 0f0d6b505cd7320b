"""Predicted and true masks as arrays, and what is counted of them: right, labelled and predicted pixels a class.

`evaluate.load` copies this folder alone, so nothing here imports from the rest of the package.
"""

from collections.abc import Sequence

import numpy as np

from .class_indices import as_indices


def check_masks(
    predictions: Sequence[Sequence], references: Sequence[Sequence]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Each sample's predictions as (E, H, W) and its reference as (H, W), int64; samples may differ in size.

    Args:
        predictions: of each sample one mask per eps, lists or anything numpy makes an array of.
        references: the true masks. Whole numbers, both; predictions of at least 0.

    Raises:
        ValueError: no samples, other numbers of them, masks of another shape than the reference's, or values that are
            no class.
    """
    if len(predictions) != len(references) or len(references) == 0:
        raise ValueError(
            "predictions and references must be as many, one entry a sample and at least one, "
            f"got {len(predictions)} and {len(references)}."
        )
    checked: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for index, (found, reference) in enumerate(zip(predictions, references, strict=True)):
        found, reference = _as_array(found, f"predictions[{index}]"), _as_array(reference, f"references[{index}]")
        if reference.ndim != 2 or found.ndim != 3 or found.shape[1:] != reference.shape or reference.size == 0:
            raise ValueError(
                "Each sample needs one predicted mask per eps, (n_epsilons, H, W), and a reference of the same size, "
                f"(H, W); got {found.shape} and {reference.shape} for sample {index}. Resize logits to the reference's "
                "size before the argmax."
            )
        checked[0].append(as_indices(found, f"predictions[{index}]"))
        signed = reference.dtype.kind == "i"  # below 0 a pixel counts nowhere
        checked[1].append(reference.astype(np.int64) if signed else as_indices(reference, f"references[{index}]"))
    return checked


def _as_array(values: Sequence, name: str) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError:
        raise ValueError(f"{name} must be masks of one size, with rows of one length.") from None


def count_pixels(
    predictions: Sequence[np.ndarray], references: Sequence[np.ndarray], ignore_index: int | None = 255
) -> np.ndarray:
    """Right, labelled and predicted pixels of each class at each eps, summed over the samples: (3, E, K) int64.

    Pixels whose reference is `ignore_index` or negative count nowhere, whatever is predicted there. K is the largest
    class that occurs, plus one.

    Raises:
        ValueError: no pixel is labelled.

    >>> masks, reference = np.array([[[0, 1], [1, 0]]]), np.array([[0, 1], [0, 255]])
    >>> count_pixels([masks], [reference]).tolist()
    [[[1, 1]], [[2, 1]], [[1, 2]]]
    """
    kept = [reference >= 0 for reference in references]
    if ignore_index is not None:
        kept = [each & (reference != ignore_index) for each, reference in zip(kept, references, strict=True)]
    labels = [reference[each] for reference, each in zip(references, kept, strict=True)]
    answers = [masks[:, each] for masks, each in zip(predictions, kept, strict=True)]  # (E, labelled pixels)
    if not any(map(len, labels)):
        raise ValueError(f"No pixel of the references is labelled: all are {ignore_index} (ignore_index) or negative.")
    num_classes = 1 + max(int(part.max()) for part in [*labels, *answers] if part.size)
    counts = np.zeros((3, len(predictions[0]), num_classes), dtype=np.int64)
    for label, answer in zip(labels, answers, strict=True):
        counts[1] += np.bincount(label, minlength=num_classes)
        for index, row in enumerate(answer):
            counts[0, index] += np.bincount(label[row == label], minlength=num_classes)
            counts[2, index] += np.bincount(row, minlength=num_classes)
    return counts


def pixel_accuracy(right: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """The share of labelled pixels that are right, from counts (..., K): the "overall accuracy" or aAcc, (...)."""
    return right.sum(-1) / labelled.sum(-1)


def class_ious(right: np.ndarray, labelled: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Intersection over union of each class, from counts (..., K); NaN for one that is neither labelled nor predicted.

    >>> class_ious(np.array([2, 0, 0]), np.array([4, 1, 0]), np.array([2, 3, 0])).tolist()
    [0.5, 0.0, nan]
    """
    union = np.asarray(labelled + predicted - right, dtype=np.float64)
    return np.divide(right, union, out=np.full_like(union, np.nan), where=union > 0)


def mean_iou(right: np.ndarray, labelled: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """The mean of `class_ious` over the classes that are labelled or predicted, (...), of counts (..., K)."""
    union = labelled + predicted - right
    ious = np.divide(right, union, out=np.zeros(union.shape), where=union > 0)
    return ious.sum(-1) / (union > 0).sum(-1)
