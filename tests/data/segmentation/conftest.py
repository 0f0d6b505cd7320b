"""The embedded scenes, drawn once."""

import pytest

from hf_robust_ft.data.segmentation import load_segmentation_dataset


@pytest.fixture(scope="session")
def scenes():
    return load_segmentation_dataset("digits_scenes")
