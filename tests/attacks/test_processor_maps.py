import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BeitImageProcessor,
    CLIPImageProcessor,
    DonutImageProcessor,
    EfficientNetImageProcessor,
    ImageGPTImageProcessor,
    MobileViTImageProcessor,
    NougatImageProcessor,
    Siglip2ImageProcessor,
    ViTImageProcessor,
    VivitImageProcessor,
)

from hf_robust_ft import PixelSpace

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TWICE = tuple(std**0.5 for std in IMAGENET[1])  # as EfficientNet's checkpoints on the Hub have it
SMALL = {"size": {"height": 32, "width": 32}}


class Own:
    """A processor of no library: called as transformers' are."""

    def __init__(self, change):
        self.change = change

    def __call__(self, images, return_tensors=None):
        images = images if isinstance(images, list) else [images]
        pixels = torch.stack([torch.as_tensor(np.array(each)).permute(2, 0, 1) / 255 for each in images])
        return {"pixel_values": self.change(pixels)}


MAPS = {
    "scales twice": (EfficientNetImageProcessor(image_mean=IMAGENET[0], image_std=TWICE), PixelSpace(*IMAGENET)),
    "scales once": (
        EfficientNetImageProcessor(include_top=False, image_mean=IMAGENET[0], image_std=IMAGENET[1]),
        PixelSpace(*IMAGENET),
    ),
    "offset": (
        EfficientNetImageProcessor(
            rescale_offset=True, rescale_factor=1 / 127.5, do_normalize=False, include_top=False
        ),
        PixelSpace((0.5,) * 3, (0.5,) * 3),
    ),
    "reversed": (MobileViTImageProcessor(), PixelSpace(channels=(2, 1, 0))),
    "own digits": (CLIPImageProcessor(), PixelSpace(CLIPImageProcessor().image_mean, CLIPImageProcessor().image_std)),
    "border": (DonutImageProcessor(size={"height": 64, "width": 48}), PixelSpace((0.5,) * 3, (0.5,) * 3)),
    "bytes": (BeitImageProcessor(do_rescale=False, do_normalize=False), PixelSpace((0,) * 3, (1 / 255,) * 3)),
    "of no library": (Own(lambda x: (x[:, [1, 2, 0]] - 0.25) * 8), PixelSpace((0.25,) * 3, (0.125,) * 3, (1, 2, 0))),
}


@pytest.mark.parametrize("name", MAPS)
def test_the_map_is_found_and_exact(name):
    processor, expected = MAPS[name]
    found = PixelSpace.from_processor(processor)
    assert found.channels == expected.channels
    assert np.allclose(found.mean + found.std, expected.mean + expected.std, atol=1e-6)
    colour = (10, 120, 250)
    values = torch.as_tensor(processor(Image.new("RGB", (64, 64), colour), return_tensors="pt")["pixel_values"])
    middle = found.to_pixels(values)[0, :, values.shape[2] // 2, values.shape[3] // 2]
    assert torch.allclose(middle, torch.tensor(colour) / 255, atol=1e-5)


def test_stated_digits_are_kept():
    assert PixelSpace.from_processor(CLIPImageProcessor()).mean == (0.48145466, 0.4578275, 0.40821073)
    assert PixelSpace.from_processor(MAPS["reversed"][0]).std == (1.0, 1.0, 1.0)


NO_MAPS = {
    "grey": (lambda x: x.mean(1, keepdim=True).expand(-1, 3, -1, -1), "a mixture of channels"),
    "one channel thrice": (lambda x: x[:, :1].expand(-1, 3, -1, -1), "a mixture of channels"),
    "negative": (lambda x: 1 - x, "not rising with the pixel: from black to full colour by"),
    "curve": (lambda x: x**2.2, "on plain colours from the map fitted to others"),
    "per image": (lambda x: x - x.mean((2, 3), keepdim=True) + 1e-3 * x, "on plain colours|dependent|another one"),
    "contrast of the image": (
        lambda x: (x - x.mean((2, 3), keepdim=True)) * 2 + x.mean((2, 3), keepdim=True),
        "another one for an image of two colours",
    ),
    "gradient": (lambda x: x * torch.linspace(0, 1, x.shape[-1]), "not one colour any more"),
    "one channel": (lambda x: x[:, :1], r"shape \(1, 1, 256, 256\) of one image, not \(1, 3, H, W\)"),
}


@pytest.mark.parametrize("name", NO_MAPS)
def test_what_is_no_map_is_refused_with_the_ways_out(name):
    change, told = NO_MAPS[name]
    with pytest.raises(ValueError, match=told) as refused:
        PixelSpace.from_processor(Own(change))
    assert "pixel_space=PixelSpace" in str(refused.value)
    assert "On the command line" in str(refused.value)


@pytest.mark.parametrize(
    ("processor", "told"),
    [
        (ImageGPTImageProcessor(clusters=[[0, 0, 0], [1, 1, 1]]), "makes no 'pixel_values' of an image"),
        (ImageGPTImageProcessor(), "Clusters must be provided"),
        (Siglip2ImageProcessor(), r"shape \(1, 256, 768\) of one image"),
        (VivitImageProcessor(), r"shape \(1, 1, 3, 224, 224\) of one image"),
        (object(), "is no image processor"),
        (str.split, "cannot process an image by itself"),
    ],
    ids=["ids", "crash", "patches", "video", "object", "function"],
)
def test_what_makes_no_images_is_refused(processor, told):
    with pytest.raises(ValueError, match=told) as refused:
        PixelSpace.from_processor(processor)
    assert "pixel_space=PixelSpace" in str(refused.value)


def test_cropping_by_content_is_no_other_map():
    processor = NougatImageProcessor(size={"height": 64, "width": 48})
    assert np.allclose(PixelSpace.from_processor(processor).mean, IMAGENET[0])


def test_the_cure_for_the_command_line_serves(tmp_path, make_model):
    """A folder with the checkpoint and a plain processor, saved as the message says."""
    from hf_robust_ft import load_image_classifier

    make_model("resnet").save_pretrained(tmp_path)
    ViTImageProcessor(image_mean=[0.4] * 3, image_std=[0.3] * 3, **SMALL).save_pretrained(tmp_path)
    _, processor = load_image_classifier(str(tmp_path))
    assert PixelSpace.from_processor(processor) == PixelSpace((0.4,) * 3, (0.3,) * 3)
