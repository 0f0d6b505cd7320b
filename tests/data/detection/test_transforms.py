import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image
from PIL import Image as PILImage
from transformers import RTDetrImageProcessor, ViTImageProcessor, YolosImageProcessor

from hf_robust_ft.data.detection import with_pixel_values_and_boxes
from hf_robust_ft.data.detection.digit_boxes import FEATURES

SQUARE = RTDetrImageProcessor(size={"height": 32, "width": 64})


def dataset(boxes, categories):
    image = PILImage.fromarray(np.arange(20 * 40 * 3, dtype=np.uint8).reshape(20, 40, 3))
    features = Features({"image": Image(), "objects": FEATURES["objects"]})
    return Dataset.from_dict(
        {"image": [image], "objects": [{"bbox": boxes, "category": categories}]}, features=features
    )


def test_boxes_become_shares_of_the_image_and_pixels_those_of_the_processor():
    data = dataset([[10, 5, 20, 10]], [3])
    example = with_pixel_values_and_boxes(data, SQUARE)[0]
    assert set(example) == {"pixel_values", "labels"} and set(example["labels"]) == {"class_labels", "boxes"}
    assert example["labels"]["boxes"].tolist() == [[0.5, 0.5, 0.5, 0.5]]
    assert example["labels"]["class_labels"].tolist() == [3]
    assert torch.equal(example["pixel_values"], SQUARE(data[0]["image"], return_tensors="pt")["pixel_values"][0])


def test_what_lies_beyond_the_image_is_cut_off_and_a_box_without_rest_left_out():
    example = with_pixel_values_and_boxes(dataset([[-0.5, 0, 20, 30], [40, 0, 5, 5]], [1, 2]), SQUARE)[0]
    assert example["labels"]["class_labels"].tolist() == [1]
    assert example["labels"]["boxes"][0].tolist() == pytest.approx([0.24375, 0.5, 0.4875, 1.0])


def test_categories_are_given_the_models_indices_and_an_image_may_hold_nothing():
    data = with_pixel_values_and_boxes(dataset([[0, 0, 5, 5]], [2]), SQUARE, order=(5, 6, 7))
    assert data[0]["labels"]["class_labels"].tolist() == [7]
    empty = with_pixel_values_and_boxes(dataset([], []), SQUARE)[0]["labels"]
    assert empty["boxes"].shape == (0, 4) and empty["class_labels"].dtype == torch.int64


def test_a_pixel_mask_comes_along_only_where_there_is_padding():
    sizes = {"size": {"height": 32, "width": 64}}
    assert "pixel_mask" not in with_pixel_values_and_boxes(dataset([], []), YolosImageProcessor(**sizes))[0]
    padding = YolosImageProcessor(**sizes, pad_size={"height": 64, "width": 64})
    example = with_pixel_values_and_boxes(dataset([], []), padding)[0]
    assert example["pixel_mask"].shape == (64, 64) and 0 < example["pixel_mask"].float().mean() < 1


def test_a_classifiers_processor_is_refused():
    with pytest.raises(ValueError, match="ViTImageProcessor is no image processor for object detection"):
        with_pixel_values_and_boxes(dataset([], []), ViTImageProcessor())
