from io import BytesIO

import numpy as np
import pytest
from PIL import Image as PILImage

from hf_robust_ft.data.segmentation import BadMaskError, MaskReader, decode_mask

INDICES = np.array([[0, 1, 2], [2, 255, 1]], dtype=np.uint8)


def as_cell(image):
    content = BytesIO()
    image.save(content, "PNG")
    return {"bytes": content.getvalue(), "path": "masks/7.png"}


def palette_image():
    image = PILImage.fromarray(INDICES, "P")
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200] + [0] * 759)
    return image


@pytest.mark.parametrize(
    "value",
    [
        PILImage.fromarray(INDICES),
        as_cell(PILImage.fromarray(INDICES)),
        as_cell(palette_image()),
        as_cell(PILImage.fromarray(INDICES.astype(np.uint16))),
        INDICES.tolist(),
    ],
    ids=["grey", "png", "palette", "sixteen-bit", "rows"],
)
def test_masks_of_every_kind_hold_the_indices_as_stored(value):
    assert np.array_equal(decode_mask(value), INDICES)


@pytest.mark.parametrize(
    "value, message",
    [
        (PILImage.new("RGB", (2, 2), (9, 0, 0)), r"colours \(mode RGB\).*Turn colours into indices"),
        (PILImage.new("RGB", (2, 2), (9, 9, 9)), r"channels are equal, so mask.convert\('L'\)"),
        ([[0.5, 1.0]], "class indices, got shape"),
        ([1, 2], "class indices, got shape"),
        ({"bytes": b"no image", "path": "masks/7.png"}, "masks/7.png: the mask cannot be read"),
        (None, "the cell is empty"),
    ],
)
def test_what_is_no_mask_is_refused_with_the_cure(value, message):
    with pytest.raises(BadMaskError, match=message):
        decode_mask(value)


def test_ignored_pixels_get_the_label_that_the_loss_leaves_out():
    assert MaskReader(3, label_for_ignored=-100)(INDICES)[1, 1] == -100
    assert MaskReader(4, ignore_index=0)(np.array([[0, 3]])).tolist() == [[255, 3]]


def test_reduced_labels_count_from_one_as_image_processors_have_it():
    from transformers import SegformerImageProcessor

    processor = SegformerImageProcessor(do_resize=False, do_reduce_labels=True)
    image = PILImage.new("RGB", (3, 2))
    theirs = processor([image], segmentation_maps=[INDICES], return_tensors="pt")["labels"][0]
    assert MaskReader(2, reduce_labels=True)(INDICES).tolist() == theirs.tolist()


def test_classes_are_put_into_the_models_order():
    reader = MaskReader(3, order=(2, 0, 1))
    assert reader(INDICES).tolist() == [[2, 0, 1], [1, 255, 0]]


def test_labels_beyond_the_classes_are_named_with_three_ways_out():
    with pytest.raises(BadMaskError, match=r"labels \[2\] are beyond the 2 classes.*ignore_index.*reduce_labels"):
        MaskReader(2)(INDICES)
