import pytest
import torch

from hf_robust_ft.attacks.box_checks import BoxCheck


def labels(boxes, classes=None):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    classes = [0] * len(boxes) if classes is None else classes
    return {"class_labels": torch.tensor(classes, dtype=torch.long), "boxes": boxes}


WHOLE = [0.5, 0.5, 1.0, 1.0]


def test_boxes_to_the_very_edge_and_images_without_any_pass():
    assert BoxCheck()([labels([WHOLE, [0.9, 0.5, 0.2004, 0.2]]), labels([])], 2, num_labels=1) is None
    assert BoxCheck(needs_a_box=False)([labels([])], 1) is None
    with pytest.raises(ValueError, match="within it"):  # a little farther over the edge
        BoxCheck()([labels([[0.9, 0.5, 0.2044, 0.2]])], 1, num_labels=1)


BAD = [
    ([labels([WHOLE])], 2, "must be a list of 2 dicts"),
    (torch.zeros(2, dtype=torch.long), 2, "AutoModelForImageClassification"),
    ([labels([WHOLE]), labels([WHOLE], [2])], 2, r"in 0..1-1, got 2 \(image 8 of the data\)"),
    ([labels([[0.9, 0.5, 0.3, 0.2]])], 1, "within it and larger than nothing"),
    ([labels([[0.5, float("nan"), 0.3, 0.2]])], 1, "nan"),
    ([labels([])], 1, "No image of this batch has a box"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "count", "sentence"), BAD)
def test_what_is_wrong_is_named_with_its_image(given, count, sentence):
    with pytest.raises(ValueError, match=sentence):
        BoxCheck()(given, count, num_labels=1, first=7)
