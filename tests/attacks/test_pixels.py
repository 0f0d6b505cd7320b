import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn
from transformers import (
    BitImageProcessor,
    CLIPImageProcessor,
    ConvNextImageProcessor,
    DeiTImageProcessor,
    MobileViTImageProcessor,
    SiglipImageProcessor,
    ViTImageProcessor,
)
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from hf_robust_ft import PixelClassifier, PixelSpace
from hf_robust_ft.attacks.pixels import input_dtype

PROCESSORS = [
    ViTImageProcessor(),
    ViTImageProcessor(do_normalize=False),
    ViTImageProcessor(do_rescale=False, image_mean=[128.0] * 3, image_std=[64.0] * 3),
    ViTImageProcessor(rescale_factor=1 / 128, image_mean=[1.0] * 3, image_std=[1.0] * 3),
    DeiTImageProcessor(),
    ConvNextImageProcessor(size={"shortest_edge": 224}),
    BitImageProcessor(),
    CLIPImageProcessor(),
    SiglipImageProcessor(),
    TimmWrapperImageProcessor(
        pretrained_cfg={"input_size": (3, 224, 224), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    ),
]


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda processor: type(processor).__name__)
def test_undoing_a_processor_gives_the_pixels_back(processor):
    space = PixelSpace.from_processor(processor)
    image = Image.fromarray(np.full((224, 224, 3), (10, 120, 250), dtype=np.uint8))
    pixels = space.to_pixels(torch.as_tensor(processor(image, return_tensors="pt")["pixel_values"]))
    assert torch.allclose(pixels.mean((0, 2, 3)), torch.tensor([10, 120, 250]) / 255, atol=1e-5)


def test_timm_statistics_come_from_the_checkpoint_and_are_not_imagenets():
    config = timm.create_model("vit_tiny_patch16_224", pretrained=False).pretrained_cfg
    space = PixelSpace.from_processor(TimmWrapperImageProcessor(pretrained_cfg=config))
    assert space.mean == space.std == (0.5, 0.5, 0.5)


def test_an_object_without_normalisation_is_refused():
    with pytest.raises(ValueError, match="is no image processor, so its normalisation is unknown"):
        PixelSpace.from_processor(object())


@pytest.mark.parametrize(
    ("mean", "std"), [((0.5,), (0.5, 0.5)), ((0.5,), (0.0,)), ((0.5,), (-1.0,)), ((float("nan"),), (1.0,))]
)
def test_impossible_statistics_are_refused(mean, std):
    with pytest.raises(ValueError, match="one positive std per channel"):
        PixelSpace(mean, std)


def test_channels_that_are_no_order_are_refused():
    for channels in [(0, 1), (0, 1, 1), (1, 2, 3)]:
        with pytest.raises(ValueError, match="must be an order of the 3 channels, 0 to 2 once each"):
            PixelSpace(channels=channels)


def test_the_order_that_changes_nothing_is_none():
    assert PixelSpace(channels=(0, 1, 2)) == PixelSpace() and "channels" not in repr(PixelSpace())
    assert PixelSpace().settings() == {"mean": [0.0] * 3, "std": [1.0] * 3}
    assert PixelSpace(channels=[2, 1, 0]).settings()["channels"] == [2, 1, 0]
    assert "channels=(2, 1, 0)" in repr(PixelSpace(channels=(2, 1, 0)))


@pytest.mark.parametrize("channels", [(2, 1, 0), (1, 2, 0), (2, 0, 1)])
def test_another_order_of_channels_there_and_back(channels):
    space = PixelSpace((0.5, 0.4, 0.3), (0.5, 0.25, 0.2), channels)
    pixels = torch.rand(2, 3, 5, 5)
    values = space.from_pixels(pixels)
    for channel, (shown, mean, std) in enumerate(zip(channels, space.mean, space.std, strict=True)):
        assert torch.allclose(values[:, channel], (pixels[:, shown] - mean) / std)
    assert torch.allclose(space.to_pixels(values), pixels, atol=1e-6)


def test_a_change_of_red_pixels_alone_stays_one_of_red_where_the_model_takes_bgr(make_model):
    """What an attack finds is in true pixels: a model that sees only its third channel is moved by red."""

    class SeesBlue(nn.Module):
        def forward(self, x):
            return torch.stack([x[:, 0].mean((1, 2)), x[:, 2].mean((1, 2))], 1)

    pixels = torch.rand(2, 3, 4, 4, requires_grad=True)
    logits = PixelClassifier(SeesBlue(), PixelSpace(channels=(2, 1, 0)))(pixels)
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), pixels)
    assert gradient[:, 0].abs().sum() > 0 and not gradient[:, 1:].any()


def test_use_under_inference_mode_leaves_nothing_behind(make_model):
    space = PixelSpace((0.11, 0.12, 0.13), (0.3, 0.2, 0.1))
    classifier = PixelClassifier(make_model("resnet"), space).eval()
    with torch.inference_mode():
        classifier(torch.rand(2, 3, 16, 16))
    pixels = torch.rand(2, 3, 16, 16, requires_grad=True)
    assert torch.autograd.grad(classifier(pixels).sum(), pixels)[0].abs().sum() > 0


def test_there_and_back():
    space = PixelSpace((0.5, 0.4, 0.3), (0.5, 0.25, 0.2))
    pixels = torch.rand(2, 3, 5, 5)
    assert torch.allclose(space.to_pixels(space.from_pixels(pixels)), pixels, atol=1e-6)


class Fixed(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output


LOGITS = torch.zeros(2, 3)


@pytest.mark.parametrize("output", [LOGITS, (LOGITS, None), {"logits": LOGITS}], ids=["tensor", "tuple", "dict"])
def test_classifier_finds_the_logits(output):
    assert PixelClassifier(Fixed(output))(torch.rand(2, 3, 4, 4)) is LOGITS


@pytest.mark.parametrize("output", [{"last_hidden_state": LOGITS}, (), None], ids=["hidden", "empty", "none"])
def test_a_model_without_logits_is_refused(output):
    with pytest.raises(ValueError, match="returned no logits"):
        PixelClassifier(Fixed(output))(torch.rand(2, 3, 4, 4))


def test_logits_of_a_wrong_shape_are_refused():
    with pytest.raises(ValueError, match=r"must have shape \(N, K\)"):
        PixelClassifier(Fixed(torch.zeros(2, 3, 4)))(torch.rand(2, 3, 4, 4))


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_classifier_equals_the_model_on_processed_images(make_model, processor, images, kind):
    model = make_model(kind).eval()
    picture = images[0]["image"]
    values = processor(picture, return_tensors="pt")["pixel_values"]
    pixels = torch.as_tensor(np.array(picture)).permute(2, 0, 1)[None] / 255
    logits = PixelClassifier(model, PixelSpace.from_processor(processor))(pixels)
    assert torch.allclose(logits, model(values).logits, atol=1e-5)


def test_a_processor_of_bgr_gives_the_models_own_logits(make_model):
    processor = MobileViTImageProcessor(do_resize=False, do_center_crop=False)
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    model = make_model("resnet").eval()
    values = processor(Image.fromarray(picture), return_tensors="pt")["pixel_values"]
    pixels = torch.as_tensor(picture).permute(2, 0, 1)[None] / 255
    logits = PixelClassifier(model, PixelSpace.from_processor(processor))(pixels)
    assert torch.allclose(logits, model(values).logits, atol=1e-5)


def test_the_dtype_is_that_of_what_embeds_the_image():
    """Normalisation layers and class tokens, which come first in some models, may be kept in float32."""
    model = nn.Sequential(nn.LayerNorm(4), nn.Conv2d(3, 2, 4, dtype=torch.float16))
    assert input_dtype(model) == torch.float16
    assert input_dtype(nn.Linear(2, 2, dtype=torch.float64)) == torch.float64 and input_dtype(nn.ReLU()) is None


def test_classifier_feeds_a_half_precision_model_in_its_own_type(make_model):
    model = make_model("vit").to(torch.bfloat16)
    assert PixelClassifier(model)(torch.rand(2, 3, 16, 16)).dtype == torch.bfloat16
