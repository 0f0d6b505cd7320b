import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode, RandomErasing
from torchvision.transforms.v2.functional import resize

from hf_robust_ft import PixelSpace
from hf_robust_ft.attacks.batch_checks import check_batch

SPACE = PixelSpace((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def batch(**changes):
    good = {"pixel_values": SPACE.from_pixels(torch.rand(4, 3, 8, 8)), "labels": torch.tensor([0, 1, 2, 3])}
    return good | changes


def test_a_good_batch_passes_up_to_rounding():
    check_batch(batch(), SPACE, num_labels=4)
    edge = SPACE.from_pixels(torch.tensor([-3e-8, 1.0]).expand(4, 3, 8, 2))
    check_batch(batch(pixel_values=edge), SPACE, num_labels=4)


def test_rounding_to_bf16_is_no_other_normalisation():
    imagenet = PixelSpace((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    greys = (torch.arange(256) / 255).view(1, 1, 16, 16).expand(4, 3, 16, 16)
    check_batch(batch(pixel_values=imagenet.from_pixels(greys).bfloat16()), imagenet)
    doubled = 2 * imagenet.from_pixels(greys)
    with pytest.raises(ValueError, match="are not the image processor's normalisation"):
        check_batch(batch(pixel_values=doubled.bfloat16()), imagenet)


def test_another_normalisation_is_refused_with_the_span_seen():
    imagenet = PixelSpace((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)).from_pixels(torch.rand(4, 3, 8, 8))
    with pytest.raises(ValueError, match=r"gives pixels from -[01]\.\d+ to 1\.\d+ instead of\s+\[0, 1\]"):
        check_batch(batch(pixel_values=imagenet), SPACE)


def test_raw_bytes_are_refused():
    with pytest.raises(ValueError, match="are not the image processor's normalisation"):
        check_batch(batch(pixel_values=torch.randint(0, 256, (4, 3, 8, 8)).float()), SPACE)


def test_nan_names_the_image():
    values = batch()["pixel_values"]
    values[2, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="image 2 of the batch are NaN"):
        check_batch(batch(pixel_values=values), SPACE)


@pytest.mark.parametrize("bad", [-1, -100, 4, 1000])
def test_labels_out_of_range_name_value_and_image(bad):
    with pytest.raises(ValueError, match=rf"in 0\.\.4-1, got {bad}\s+\(image 1"):
        check_batch(batch(labels=torch.tensor([0, bad, 2, 3])), SPACE, num_labels=4)


@pytest.mark.parametrize(
    "labels", [torch.rand(4), torch.eye(4), torch.tensor([0, 1]), [0, 1, 2, 3], torch.arange(4, dtype=torch.int32)]
)
def test_labels_that_are_no_class_indices_are_refused(labels):
    with pytest.raises(ValueError, match="one class index an image"):
        check_batch(batch(labels=labels), SPACE)


@pytest.mark.parametrize("content", [(1, 2), {"image": 1, "label": 2}, {"pixel_values": torch.rand(1, 3, 4, 4)}])
def test_missing_columns_are_named(content):
    with pytest.raises(ValueError, match="'pixel_values' and 'labels', got"):
        check_batch(content, SPACE)


def test_wrong_channels_are_refused():
    with pytest.raises(ValueError, match=r"must have shape \(N, 3, H, W\)"):
        check_batch(batch(pixel_values=torch.rand(4, 1, 8, 8)), SPACE)


IMAGENET = PixelSpace((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("size", [[100, 100], [40, 40]])
def test_a_float_resize_that_overshoots_is_named_with_its_cure(size):
    edges = torch.zeros(4, 3, 64, 64)
    edges[..., 16:48, 16:48] = 1
    resized = resize(edges, size, interpolation=InterpolationMode.BICUBIC)
    with pytest.raises(ValueError, match=r"leave the range.* to 1\..*bicubic or lanczos.*uint8.*clamp\(0, 1\)"):
        check_batch(batch(pixel_values=IMAGENET.from_pixels(resized)), IMAGENET)
    check_batch(batch(pixel_values=IMAGENET.from_pixels(resized.clamp(0, 1))), IMAGENET)


@pytest.mark.parametrize("value", ["random", -3.0, 9.0])
def test_erasing_after_normalize_is_named_with_its_cure(value):
    torch.manual_seed(0)
    erase = RandomErasing(p=1.0, value=value, scale=(0.1, 0.15))
    values = torch.stack([erase(image) for image in IMAGENET.from_pixels(torch.rand(4, 3, 32, 32))])
    with pytest.raises(ValueError, match=r"leave the range of pixels.*RandomErasing.* after Normalize: put it before"):
        check_batch(batch(pixel_values=values), IMAGENET)


def test_a_normalisation_that_is_another_one_is_not_taken_for_a_resize():
    for values in (IMAGENET.from_pixels(torch.rand(4, 3, 8, 8)), torch.rand(4, 3, 8, 8) * 255):
        with pytest.raises(ValueError) as refused:
            check_batch(batch(pixel_values=values), SPACE)
        assert "bicubic" not in str(refused.value) and "pixel_space=PixelSpace" in str(refused.value)
