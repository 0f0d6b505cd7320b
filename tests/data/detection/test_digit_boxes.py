import numpy as np
import pytest

from hf_robust_ft.data.detection.digit_boxes import load_digit_boxes
from hf_robust_ft.data.segmentation import digit_scenes


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(digit_scenes, "SCENES", {"train": 6, "validation": 1, "test": 1})


def test_a_box_lies_close_around_the_pixels_of_its_digit(few):
    boxed, masked = load_digit_boxes()["train"], digit_scenes.load_digit_scenes()["train"]
    for scene, pair in zip(boxed, masked, strict=True):
        assert np.array_equal(np.asarray(scene["image"]), np.asarray(pair["image"]))
        mask, covered = np.asarray(pair["mask"]), np.zeros((64, 64), dtype=bool)
        for (x, y, w, h), category in zip(scene["objects"]["bbox"], scene["objects"]["category"], strict=True):
            inside = (slice(int(y), int(y + h)), slice(int(x), int(x + w)))
            is_digit = mask[inside] == category + 1
            assert all(is_digit.any(axis).all() or is_digit.any(axis)[[0, -1]].all() for axis in (0, 1))
            covered[inside] |= is_digit
        assert np.array_equal(covered, mask > 0)


def test_boxes_are_the_same_for_the_same_seed_and_others_for_another(few):
    first, again, other = (load_digit_boxes(seed)["train"]["objects"][:] for seed in (0, 0, 1))
    assert first == again != other
