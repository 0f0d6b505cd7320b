"""An image's hash is the same wherever it is made, and no other image's."""

import pytest
import torch

from hf_robust_ft.attacks.pixels import PixelSpace
from hf_robust_ft.data import with_pixel_values
from hf_robust_ft.data.source_hashes import source_digest
from hf_robust_ft.provenance.image_hashes import as_hex, combined_hash, hash_images

SPACES = [PixelSpace(), PixelSpace((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), PixelSpace((0.5,) * 3, (0.5,) * 3)]


def levels(count=5, size=6):
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_normalisation_and_its_rounding_make_no_difference(space):
    pixels = levels() / 255
    plain = as_hex(hash_images(pixels))
    there_and_back = space.to_pixels(space.from_pixels(pixels))
    assert not torch.equal(there_and_back, pixels) or space == PixelSpace()
    noise = 1e-4 * (2 * torch.rand(pixels.shape) - 1)
    for same in (there_and_back, space.to_pixels(space.from_pixels(pixels.double())), pixels + noise):
        assert as_hex(hash_images(same)) == plain
    assert as_hex(hash_images(pixels.to(memory_format=torch.channels_last))) == plain


def test_the_batch_makes_no_difference_and_any_change_of_an_image_does():
    pixels = levels() / 255
    found = as_hex(hash_images(pixels))
    assert [as_hex(hash_images(image[None]))[0] for image in pixels] == found
    assert len(set(found)) == 5 and {len(each) for each in found} == {16}
    changed = pixels.clone()
    changed[3, 1, 2, 2] = (changed[3, 1, 2, 2] + 1 / 255) % (256 / 255)
    assert [a == b for a, b in zip(as_hex(hash_images(changed)), found, strict=True)] == [True, True, True, False, True]
    reshaped = pixels.reshape(5, 3, 4, 9)
    assert not set(as_hex(hash_images(reshaped))) & set(found)


def test_none_at_all_have_no_hashes():
    assert hash_images(torch.zeros(0, 3, 4, 4)).shape == (0, 8) and combined_hash([]) == ""


def test_sources_are_told_apart_by_their_files_and_not_by_preprocessing(images, processor):
    digest = source_digest(images)
    assert digest == source_digest(with_pixel_values(images, processor)) == source_digest(images.shuffle(seed=1))
    assert digest != source_digest(images.select(range(47)))
    assert source_digest([{"pixel_values": 0}]) is None and source_digest(images.remove_columns("image")) is None
