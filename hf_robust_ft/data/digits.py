"""The 1,797 handwritten digits that ship with scikit-learn: real data without a network."""

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage


def digit_arrays() -> tuple[np.ndarray, np.ndarray]:
    """All digits in scikit-learn's order: grey values (N, 8, 8) uint8, 255 for full ink, and labels (N,) from 0 to 9.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError("The digits dataset ships with scikit-learn: pip install 'hf_robust_ft[demo]'.") from None
    digits = load_digits()
    return np.round(digits.images * (255 / 16)).astype(np.uint8), digits.target


def load_digits_dataset() -> Dataset:
    """All digits as 8 x 8 RGB images with labels 0 to 9, in scikit-learn's order.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    grey, labels = digit_arrays()
    return Dataset.from_dict(
        {
            "image": [PILImage.fromarray(image).convert("RGB") for image in grey],
            "label": labels.tolist(),
        },
        features=Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])}),
    )
