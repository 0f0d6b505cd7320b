import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from transformers import CLIPImageProcessor, ConvNextImageProcessor, MobileViTImageProcessor, ViTImageProcessor
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from hf_robust_ft import PixelSpace, ThreatModel, evaluate_robustness
from hf_robust_ft.attacks.normalisation_checks import check_normalisation

IMAGENET = PixelSpace((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CENTRED = PixelSpace((0.5,) * 3, (0.5,) * 3)
SIZE = {"height": 32, "width": 32}
PROCESSORS = {
    "vit": ViTImageProcessor(size=SIZE),
    "clip": CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SIZE),
    "convnext": ConvNextImageProcessor(size={"shortest_edge": 32}),
    "timm": TimmWrapperImageProcessor(
        pretrained_cfg={"input_size": (3, 32, 32), "mean": IMAGENET.mean, "std": IMAGENET.std, "crop_pct": 0.9}
    ),
    "bgr": MobileViTImageProcessor(size={"shortest_edge": 32}, crop_size=SIZE),
    "plain": ViTImageProcessor(size=SIZE, do_normalize=False),
    "bytes": ViTImageProcessor(size=SIZE, do_normalize=False, do_rescale=False),
}


def pictures(kind: str) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    low, high = {"dark": (0, 40), "bright": (215, 256), "flat": (125, 180), "band": (128, 256)}.get(kind, (0, 256))
    count = 1 if kind in ("single", "band") else 8
    if kind == "plain colours":
        return [Image.new("RGB", (40, 40), tuple(rng.integers(120, 190, 3).tolist())) for _ in range(count)]
    if kind == "one colour":
        return [Image.new("RGB", (40, 40), (140, 130, 125))] * count
    coarse = rng.integers(low, high, (count, 5, 5, 3), dtype=np.uint8)
    return [Image.fromarray(each).resize((40, 40), Image.Resampling.BILINEAR) for each in coarse]


@pytest.mark.parametrize("kind", ["usual", "dark", "bright", "flat", "band", "single", "plain colours", "one colour"])
@pytest.mark.parametrize("name", PROCESSORS)
def test_what_a_processor_made_passes_without_a_word(name, kind, caplog):
    """Also images whose pixels all keep to [mean, mean + std]: "flat" does for ImageNet's, "band" for 0.5 and 0.5."""
    space = PixelSpace.from_processor(PROCESSORS[name])
    values = PROCESSORS[name](pictures(kind), return_tensors="pt")["pixel_values"].float()
    for some in (values, values[:1]):
        check_normalisation(some, space)
        check_normalisation(some.half(), space)
        if kind in ("usual", "dark", "single"):  # bfloat16 does not show bytes
            check_normalisation(some.bfloat16(), space)
    assert caplog.text == ""


@pytest.mark.parametrize("kind", ["usual", "dark", "bright", "flat", "single"])
@pytest.mark.parametrize("name", ["vit", "clip", "convnext", "timm", "bytes"])
def test_normalize_forgotten_is_told_of_images_of_any_contrast(name, kind):
    plain = torch.stack([v2.functional.to_dtype(v2.functional.to_image(each), scale=True) for each in pictures(kind)])
    with pytest.raises(ValueError, match="Normalize, or the processor's do_normalize, is missing"):
        check_normalisation(plain, PixelSpace.from_processor(PROCESSORS[name]))


@pytest.mark.parametrize("space", [IMAGENET, CENTRED, PixelSpace((0.1307,), (0.3081,))], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_floats_without_normalize_are_told_by_the_band_they_fill(space, dtype):
    plain = torch.rand(8, len(space.mean), 16, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    with pytest.raises(ValueError, match="Normalize") as told:
        check_normalisation(plain, space)
    assert "PixelSpace()" in str(told.value) and f"mean={space.mean}" in str(told.value)


def test_the_message_has_the_values_and_what_eps_would_do():
    plain = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2).expand(2, 3, 4, 2)
    with pytest.raises(ValueError, match=r"from 0 to 1, look like .* keep to 0\.406 to 0\.714 .* up to 35\.7/255"):
        check_normalisation(plain, IMAGENET)


@pytest.mark.parametrize(
    ("made_by", "stated", "told"),
    [
        (CENTRED, IMAGENET, r"normalised to \[-1, 1\], by mean and std 0.5"),
        (PixelSpace.from_processor(PROCESSORS["clip"]), IMAGENET, "by CLIP's mean and std"),
    ],
    ids=["centred", "clip"],
)
def test_another_well_known_normalisation_is_told(made_by, stated, told):
    pixels = torch.randint(0, 256, (4, 3, 16, 16), generator=torch.Generator().manual_seed(0)) / 255
    with pytest.raises(ValueError, match=told):
        check_normalisation(made_by.from_pixels(pixels), stated)


@pytest.mark.parametrize("space", [IMAGENET, CENTRED], ids=["imagenet", "centred"])
def test_honest_floats_pass(space, caplog):
    """Images resized as floats are no multiples of 1/255."""
    generator = torch.Generator().manual_seed(0)
    for low, high in [(0, 1), (0, 0.3), (0.7, 1), (0.6, 0.6), (0.5, 0.52)]:
        for count in (1, 8):
            pixels = low + (high - low) * torch.rand(count, 3, 16, 16, generator=generator)
            if (low, space) != (0.7, CENTRED):
                check_normalisation(space.from_pixels(pixels), space)
    check_normalisation(torch.zeros(4, 3, 16, 16), space)
    check_normalisation(space.from_pixels(torch.rand(8, 3, 1, 1).expand(8, 3, 16, 16)), space)
    assert caplog.text == ""


def test_what_only_looks_so_is_a_warning(caplog):
    """One image that fills the band, or a batch that fills little of it."""
    generator = torch.Generator().manual_seed(0)
    check_normalisation(torch.rand(1, 3, 16, 16, generator=generator), IMAGENET)
    check_normalisation(0.3 + 0.4 * torch.rand(8, 3, 16, 16, generator=generator), IMAGENET)
    assert caplog.text.count("If the images are of so little contrast, all is well.") == 2


def test_a_map_that_hardly_differs_is_not_another(caplog):
    """ImageNet's statistics in other roundings."""
    pixels = torch.randint(0, 256, (4, 3, 16, 16)) / 255
    check_normalisation(PixelSpace((0.485, 0.456, 0.406), (0.225, 0.225, 0.225)).from_pixels(pixels), IMAGENET)
    assert caplog.text == ""


def forgotten(count: int = 24) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    return [{"pixel_values": torch.rand(3, 16, 16, generator=generator), "labels": i % 4} for i in range(count)]


def test_training_and_every_evaluation_are_told_before_they_compute(make_trainer, make_model, processor):
    told = "Normalize, or the processor's do_normalize, is missing"
    with pytest.raises(ValueError, match=told):
        make_trainer(train_dataset=forgotten()).train()
    trainer = make_trainer()
    with pytest.raises(ValueError, match=told):
        trainer.evaluate(forgotten())
    with pytest.raises(ValueError, match=told):
        evaluate_robustness(
            make_model(),
            forgotten(),
            threat_model=ThreatModel("Linf", "8/255"),
            pixel_space=PixelSpace.from_processor(processor),
        )
    evaluate_robustness(make_model(), forgotten(8), threat_model=ThreatModel("Linf", "1/255"), checks=False)


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("CIFAR's", (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
        ("CIFAR's", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.201)),
        ("MNIST's", (0.1307,) * 3, (0.3081,) * 3),
    ],
)
def test_statistics_of_a_known_data_set_are_told_from_the_models(name, mean, std):
    plain = torch.stack([v2.functional.to_dtype(v2.functional.to_image(x), scale=True) for x in pictures("flat")])
    values = PixelSpace(mean, std).from_pixels(plain)
    with pytest.raises(ValueError, match=f"normalised by {name} mean"):
        check_normalisation(values, IMAGENET)
    check_normalisation(values, PixelSpace(mean, std))
