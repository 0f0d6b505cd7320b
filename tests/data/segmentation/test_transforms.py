import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image
from PIL import Image as PILImage
from transformers import ConvNextImageProcessor, SegformerImageProcessor, ViTImageProcessor

from hf_robust_ft.data.augmentation import transform_of
from hf_robust_ft.data.segmentation import JOINT_AUGMENTATION_WORDS, MaskReader, with_pixel_values_and_masks

READER = MaskReader(5)


@pytest.fixture(scope="module")
def dataset():
    """Images whose red is 40 times their mask, so that one can be read off the other."""
    masks = [np.kron(np.random.default_rng(seed).integers(0, 5, (4, 4)), np.ones((8, 8), int)) for seed in range(3)]
    images = [np.stack([40 * mask] * 3, -1).astype(np.uint8) for mask in masks]
    return Dataset.from_dict(
        {
            "image": [PILImage.fromarray(image) for image in images],
            "mask": [PILImage.fromarray(mask.astype(np.uint8)) for mask in masks],
        },
        features=Features({"image": Image(), "mask": Image()}),
    )


def processors(side):
    size = {"height": side, "width": side}
    plain = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": size}
    return [SegformerImageProcessor(**plain, resample=0), ViTImageProcessor(**plain, resample=0)]


@pytest.mark.parametrize("side", [32, 64, 16])
@pytest.mark.parametrize("number", [0, 1], ids=["takes masks", "takes none"])
def test_image_and_mask_stay_together(dataset, side, number):
    batch = with_pixel_values_and_masks(dataset, processors(side)[number], READER)[:]
    for pixel_values, labels in zip(batch["pixel_values"], batch["labels"], strict=True):
        assert pixel_values.shape == (3, side, side) and labels.shape == (side, side) and labels.dtype == torch.int64
        assert torch.equal((pixel_values[0] * 0.5 + 0.5).mul(255 / 40).round().long(), labels)


def test_flip_and_crop_move_both_alike(dataset):
    made = with_pixel_values_and_masks(dataset, processors(32)[0], READER, "crop")
    plain = with_pixel_values_and_masks(dataset, processors(32)[0], READER)
    moved = 0
    for epoch in range(4):
        transform_of(made).state.set(0, epoch)
        for index in range(3):
            example = made[index]
            inside = (example["pixel_values"][0] * 0.5 + 0.5).mul(255 / 40)
            # Enlarged images are smooth at edges, masks are not.
            assert ((inside - example["labels"]).abs() < 0.5).float().mean() > 0.85
            moved += not torch.equal(example["labels"], plain[index]["labels"])
    assert moved > 6


def test_corners_that_rotation_empties_are_ignored_and_nothing_else(dataset):
    made = with_pixel_values_and_masks(dataset, processors(32)[0], READER, "paper")
    transform_of(made).state.set(0, 1)
    labels = torch.stack([made[index]["labels"] for index in range(3)])
    assert set(labels.unique().tolist()) <= {*range(5), 255} and (labels == 255).float().mean() < 0.2


def test_the_same_seed_and_epoch_vary_alike(dataset):
    made = with_pixel_values_and_masks(dataset, processors(32)[0], READER, "paper")
    transform_of(made).state.set(3, 1)
    first, again = made[0], made[0]
    assert all(torch.equal(first[name], again[name]) for name in ("pixel_values", "labels"))


def test_a_processor_that_crops_and_takes_no_masks_is_refused(dataset):
    processor = ViTImageProcessor()
    processor.do_center_crop = True
    with pytest.raises(ValueError, match="ViTImageProcessor has do_center_crop, and takes no segmentation_maps"):
        with_pixel_values_and_masks(dataset, processor, READER)
    with pytest.raises(ValueError, match="augmentation"):
        with_pixel_values_and_masks(dataset, processors(32)[0], READER, "mixup")


def test_every_augmentation_has_its_words(dataset):
    for name in JOINT_AUGMENTATION_WORDS:
        assert with_pixel_values_and_masks(dataset, processors(32)[0], READER, name)[0]["labels"].shape == (32, 32)


def test_per_sample_schedules_get_an_id_of_each_image(dataset):
    made = with_pixel_values_and_masks(dataset, processors(32)[0], READER, sample_ids=True)
    assert len({made[index]["sample_id"] for index in range(3)}) == 3


def test_a_mask_of_another_size_is_named_when_read(dataset):
    small = dataset.map(lambda mask: {"mask": mask.resize((4, 4))}, input_columns="mask", features=dataset.features)
    with pytest.raises(ValueError, match="the mask has 4 x 4 pixels"):
        with_pixel_values_and_masks(small, ConvNextImageProcessor(do_resize=False), READER)[0]
