import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage
from torch.utils.data import DataLoader

from hf_robust_ft import PixelSpace
from hf_robust_ft.batch_checks import check_batch
from hf_robust_ft.batches import stack_examples
from hf_robust_ft.data import align_labels, with_pixel_values


def test_evaluation_is_exactly_the_processor(images, processor):
    example = with_pixel_values(images, processor)[3]
    expected = processor(images[3]["image"], return_tensors="pt")["pixel_values"][0]
    assert torch.equal(torch.as_tensor(example["pixel_values"]), torch.as_tensor(expected))
    assert example["labels"] == images[3]["label"]


def test_augmentation_varies_and_stays_in_the_pixel_range(images, processor):
    augmented = with_pixel_values(images, processor, "paper")
    first, second = (stack_examples([augmented[index] for index in range(8)]) for _ in range(2))
    assert not torch.equal(first["pixel_values"], second["pixel_values"])
    check_batch(first, PixelSpace.from_processor(processor), num_labels=4)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_every_image_mode_becomes_rgb(mode, processor):
    picture = PILImage.fromarray(np.full((20, 20, 3), 128, np.uint8)).convert(mode)
    features = Features({"image": Image(), "label": Value("int64")})
    dataset = Dataset.from_dict({"image": [picture], "label": [0]}, features=features)
    assert with_pixel_values(dataset, processor)[0]["pixel_values"].shape == (3, 16, 16)


def test_spawned_workers_can_receive_it(images, processor):
    loader = DataLoader(
        with_pixel_values(images, processor, "paper"),
        batch_size=24,
        num_workers=1,
        multiprocessing_context="spawn",
        collate_fn=stack_examples,
    )
    assert [len(batch["labels"]) for batch in loader] == [24, 24]


def test_unknown_augmentation_lists_the_valid_ones(images, processor):
    with pytest.raises(ValueError, match="Valid: none, paper"):
        with_pixel_values(images, processor, "mixup")


def test_class_names_that_differ_in_case_are_different_classes(images, make_model):
    names = ["A", "a", "B", "b"]
    config = make_model().config
    config.id2label = dict(enumerate(["b", "B", "a", "A"]))
    aligned = align_labels(images.cast_column("label", ClassLabel(names=names)), config)
    assert aligned["label"][:4] == [3, 2, 1, 0]


def test_labels_are_aligned_by_name(images, make_model):
    config = make_model().config
    config.id2label = dict(enumerate(["yellow", "blue", "green", "red"]))
    aligned = align_labels(images, config)
    assert aligned["label"][:4] == [3, 2, 1, 0]
    config.id2label = dict(enumerate(["a", "b", "c", "d"]))
    assert align_labels(images, config)["label"][:4] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="tells 7 classes apart, the dataset has 4"):
        align_labels(images, make_model(num_labels=7).config)
