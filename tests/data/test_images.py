import io

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage

from hf_robust_ft.data.images import RGBImage, UndecodableImageError, decode_rgb, to_rgb

RAMP = np.linspace(0, 65535, 16 * 16).reshape(16, 16)
ORIENTATION = 0x0112


def stored(image, kind="PNG", **options):
    """A cell of an image column that holds the image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return {"bytes": buffer.getvalue(), "path": f"a.{kind.lower()}"}


def pixels(value):
    image = decode_rgb(value)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX", "PA", "LA", "RGBA"])
def test_every_mode_keeps_its_colour(mode):
    colour = (255, 255, 255) if mode in ("1", "L", "LA") else (255, 0, 0)
    image = PILImage.new("RGB", (4, 4), colour)
    image = image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)
    np.testing.assert_allclose(np.asarray(to_rgb(image))[0, 0], colour, atol=2)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_not_clipped(kind):
    value = stored(PILImage.fromarray(RAMP.astype(np.uint16)), kind)
    np.testing.assert_array_equal(pixels(value)[..., 0], np.round(RAMP.astype(np.uint16) / 257))


def test_a_dark_sixteen_bit_image_stays_dark():
    dark = PILImage.fromarray(np.full((4, 4), 200, np.uint16))
    assert pixels(stored(dark, "PNG")).max() == pixels(stored(dark, "PPM")).max() == 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 128, 255]], np.int32), [0, 128, 255]),
        (np.array([[0, 257, 65535]], np.int32), [0, 1, 255]),
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 100.4, 255]], np.float32), [0, 100, 255]),
    ],
    ids=["integers of 8 bits", "integers of 16 bits", "floats to 1", "floats to 255"],
)
def test_wide_pixels_are_scaled_by_their_range(values, expected):
    assert pixels(stored(PILImage.fromarray(values), "TIFF"))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("values", [[-1, 5], [0, 70000], [0.0, 300.0], [-0.5, 0.5], [0.0, float("nan")]])
def test_a_range_that_does_not_say_what_white_is_is_refused(values):
    array = np.array([values], np.int32 if isinstance(values[0], int) else np.float32)
    with pytest.raises(UndecodableImageError, match=r"a\.tiff: its values lie in .*rescale"):
        decode_rgb(stored(PILImage.fromarray(array), "TIFF"))


def test_transparency_is_blended_onto_white():
    # Hidden under full transparency lies red; half transparent black becomes grey.
    for mode in ("RGBA", "RGBa", "LA"):
        image = PILImage.new("RGBA", (2, 1), (255, 0, 0, 0))
        image.putpixel((1, 0), (0, 0, 0, 128))
        image = image.convert(mode) if mode != "LA" else image.convert("LA")
        assert np.asarray(to_rgb(image))[0].tolist() == [[255] * 3, [127] * 3], mode


def test_transparency_of_palettes_and_colour_keys():
    palette = PILImage.new("RGB", (2, 1), (255, 0, 0))
    palette.putpixel((1, 0), (0, 0, 255))
    palette = palette.convert("P")
    hidden = palette.getpixel((0, 0))
    assert pixels(stored(palette, "PNG", transparency=hidden))[0].tolist() == [[255] * 3, [0, 0, 255]]
    keyed = PILImage.new("RGB", (2, 1), (255, 0, 0))
    keyed.putpixel((1, 0), (0, 255, 0))
    assert pixels(stored(keyed, "PNG", transparency=(255, 0, 0)))[0].tolist() == [[255] * 3, [0, 255, 0]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(orientation):
    """A marked corner ends where a viewer would show it, decoded by us or first by `datasets`."""
    image = PILImage.new("L", (12, 8))
    image.paste(255, (0, 0, 4, 4))
    exif = PILImage.Exif()
    exif[ORIENTATION] = orientation
    value = stored(image, "PNG", exif=exif)
    rows, columns = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}[
        orientation
    ]
    expected = np.zeros((8, 12) if orientation < 5 else (12, 8), np.uint8)
    expected[slice(-4, None) if rows else slice(4), slice(-4, None) if columns else slice(4)] = 255
    np.testing.assert_array_equal(pixels(value)[..., 0], expected)
    np.testing.assert_array_equal(np.asarray(to_rgb(Image().decode_example(value)))[..., 0], expected)


def test_an_animation_gives_its_first_frame():
    frames = [PILImage.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    assert pixels(stored(frames[0], "GIF", save_all=True, append_images=frames[1:]))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "the cell is empty"),
        ({"bytes": None, "path": None}, "neither bytes nor a path"),
        ({"bytes": None, "path": "/no/such.png"}, "/no/such.png: the file is not there"),
        ({"bytes": b"<html>", "path": "b.png"}, "b.png: not an image file"),
        ({"bytes": b"", "path": "c.png"}, "c.png: not an image file"),
    ],
)
def test_what_cannot_be_read_is_named(value, reason):
    with pytest.raises(UndecodableImageError, match=reason):
        decode_rgb(value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP"])
def test_a_file_cut_short_is_an_error(kind):
    noise = PILImage.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    value = stored(noise, kind)
    with pytest.raises(UndecodableImageError, match=f"a.{kind.lower()}: "):
        decode_rgb(value | {"bytes": value["bytes"][: len(value["bytes"]) // 2]})


def test_the_column_type_decodes_and_says_which_dataset_failed(tmp_path):
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})
    cells = [stored(PILImage.new("RGBA", (4, 4))), {"bytes": b"?", "path": "x.png"}]
    dataset = Dataset.from_dict({"image": cells, "label": [0, 1]}, features=features)
    rgb = dataset.cast_column("image", RGBImage(id="pets (train)"))
    assert rgb[0]["image"].getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(UndecodableImageError, match=r"pets \(train\): x\.png: not an image"):
        rgb[1]
    assert rgb.features == dataset.features, "so that parts can be concatenated"
    rgb.save_to_disk(tmp_path / "saved")
    assert type(Dataset.load_from_disk(tmp_path / "saved").features["image"]) is Image
