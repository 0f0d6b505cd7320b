import json

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from transformers import (
    CLIPImageProcessor,
    ConvNextImageProcessor,
    EfficientNetImageProcessor,
    MobileViTImageProcessor,
    ViTImageProcessor,
)
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from hf_robust_ft.data import describe_transforms

TIMM = {"input_size": [3, 20, 20], "mean": [0.5] * 3, "std": [0.25] * 3, "crop_pct": 0.9, "interpolation": "bicubic"}
PROCESSORS = {
    "vit": lambda: ViTImageProcessor(size={"height": 16, "width": 20}),
    "clip": lambda: CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 20, "width": 20}),
    "convnext": lambda: ConvNextImageProcessor(size={"shortest_edge": 28}, crop_pct=0.875),
    "convnext, large": lambda: ConvNextImageProcessor(size={"shortest_edge": 384}),
    "timm": lambda: TimmWrapperImageProcessor(pretrained_cfg=TIMM),
    "timm, squashed": lambda: TimmWrapperImageProcessor(
        pretrained_cfg={**TIMM, "crop_mode": "squash", "crop_pct": 1.0}
    ),
}


@pytest.mark.parametrize("kind", PROCESSORS)
def test_the_values_described_reproduce_what_the_processor_does(kind):
    """Resizing, cropping and normalising by the description's values alone gives the processor's own output."""
    processor = PROCESSORS[kind]()
    described = describe_transforms(processor)
    image = PILImage.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8))
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    resize, crop = described["resize"], described["crop"]
    if "shortest_edge" in resize:
        edge = resize["shortest_edge"]
        size = (int(edge * 90 / 60), edge)
    else:
        size = (resize["width"], resize["height"])
    pixels = np.asarray(image.resize(size, PILImage.Resampling[described["interpolation"].upper()])) / 255
    if crop:
        top, left = (round((pixels.shape[axis] - crop[side]) / 2) for axis, side in ((0, "height"), (1, "width")))
        pixels = pixels[top : top + crop["height"], left : left + crop["width"]]
    ours = torch.tensor((pixels - described["mean"]) / described["std"]).permute(2, 0, 1)
    assert ours.shape == expected.shape
    assert (ours - expected).abs().mean() < 0.06  # Pillow and torch round differently


def test_training_and_evaluation_in_words():
    described = describe_transforms(PROCESSORS["timm"](), "paper")
    assert described["eval"] == [
        "upright RGB (EXIF orientation applied, transparency on white)",
        "resize to shorter side 22 (bicubic)",
        "centre crop 20 x 20",
        "pixels in [0, 1]",
        "normalisation with mean (0.5, 0.5, 0.5) and std (0.25, 0.25, 0.25)",
    ]
    assert [step for step in described["train"] if step not in described["eval"]] == [
        "horizontal flip with probability 0.5",
        "colour jitter 0.25 (brightness, contrast, saturation)",
        "rotation by up to 2 degrees",
    ]
    assert (
        described["text"].startswith("Evaluation images: upright RGB") and "with horizontal flip" in described["text"]
    )
    assert json.loads(json.dumps(described)) == described
    plain = describe_transforms(PROCESSORS["timm"]())
    assert plain["train"] == plain["eval"] and plain["text"].endswith("Training images: the same.")
    measured = describe_transforms(PROCESSORS["timm"](), augmentation=None)
    assert measured["eval"] == plain["eval"] and "train" not in measured and "Training" not in measured["text"]


def test_what_settings_do_not_tell_is_described_as_it_is():
    """EfficientNet's processor scales by std twice, MobileViT's gives BGR, and PPLCNet's statistics are BGR's."""
    twice = describe_transforms(EfficientNetImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3))
    assert twice["mean"] == [0.5] * 3 and np.allclose(twice["std"], 0.25, atol=1e-6)
    reversed_order = describe_transforms(MobileViTImageProcessor(do_resize=False, do_center_crop=False))
    assert reversed_order["channels"] == [2, 1, 0] and reversed_order["eval"][-1] == "channels as B G R"
    assert "channels" not in describe_transforms(ViTImageProcessor())


def test_what_a_processor_does_not_do_is_none():
    described = describe_transforms(ViTImageProcessor(do_resize=False, do_normalize=False))
    assert [described[name] for name in ("resize", "crop", "interpolation", "mean", "std")] == [None] * 5
    with pytest.raises(ValueError, match="Valid: none, paper"):
        describe_transforms(ViTImageProcessor(), "mixup")
