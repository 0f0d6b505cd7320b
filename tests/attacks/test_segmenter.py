"""A segmentation model as a function of pixels: where its logits stand, their size, and one compiled graph."""

from types import SimpleNamespace

import pytest
import torch
from tiny_segmenters import segformer, upernet
from torch import nn
from transformers import SegformerForSemanticSegmentation

from hf_robust_ft import APGD, PixelSpace, ThreatModel
from hf_robust_ft.attacks import attack_mode, compile_attack
from hf_robust_ft.attacks.segmenter import PixelSegmenter

SPACE = PixelSpace((0.5, 0.4, 0.3), (0.5, 0.25, 0.2))


@pytest.fixture(params=[segformer, upernet], ids=["segformer", "upernet"])
def model(request):
    return request.param().eval()


@pytest.fixture
def pixels():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_logits_are_what_the_image_processor_makes_of_the_models_output(model, pixels):
    with torch.no_grad():
        outputs = model(pixel_values=SPACE.from_pixels(pixels))
        logits = PixelSegmenter(model, SPACE, size=(24, 20))(pixels)
    assert logits.shape == (2, 4, 24, 20) and logits.dtype == torch.float32
    expected = nn.functional.interpolate(outputs.logits, size=(24, 20), mode="bilinear", align_corners=False)
    assert torch.equal(logits, expected)
    with torch.no_grad():
        assert PixelSegmenter(model, SPACE)(pixels).shape == (2, 4, 32, 32)


def test_the_loss_of_an_attack_is_the_models_own(model, pixels):
    labels = torch.randint(0, 4, (2, 32, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        attack = APGD(loss="pixel_ce")
        found = attack(PixelSegmenter(model, SPACE, size=(32, 32)), pixels, labels, ThreatModel("Linf", 0.1), eps=0.0)
        model.config.use_auxiliary_head = False
        own = model(pixel_values=SPACE.from_pixels(pixels), labels=labels).loss
    if isinstance(model, SegformerForSemanticSegmentation):
        assert torch.allclose(found.loss.mean(), own, rtol=1e-4)


@pytest.mark.parametrize("kind", ["tuple", "dict", "plain"])
def test_logits_are_found_in_whatever_a_module_returns(kind, pixels):
    class Own(nn.Module):
        def forward(self, pixel_values):
            logits = pixel_values[:, :2, ::4, ::4]
            return {"tuple": (logits.sum(), logits), "dict": {"logits": logits}, "plain": logits}[kind]

    assert PixelSegmenter(Own())(pixels).shape == (2, 2, 32, 32)


def test_a_model_of_query_masks_and_a_classifier_are_refused_by_name(pixels):
    class Queries(nn.Module):
        def forward(self, pixel_values):
            return {"class_queries_logits": pixel_values, "masks_queries_logits": pixel_values}

    with pytest.raises(ValueError, match="Mask2Former, OneFormer, MaskFormer"):
        PixelSegmenter(Queries())(pixels)
    with pytest.raises(ValueError, match="is this a semantic segmentation model"):
        PixelSegmenter(nn.Sequential(nn.Flatten(), nn.Linear(3072, 4)))(pixels)
    with pytest.raises(ValueError, match="returned no logits of each pixel but SimpleNamespace"):

        class Odd(nn.Module):
            def forward(self, pixel_values):
                return SimpleNamespace(boxes=pixel_values)

        PixelSegmenter(Odd())(pixels)


def test_the_attack_on_a_segmenter_is_one_graph():
    import torch._dynamo

    torch._dynamo.reset()
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.GELU(), nn.Conv2d(8, 4, 1)).eval()
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 4, (2, 16, 16), generator=torch.Generator().manual_seed(1))
    attack, threat_model = APGD(steps=2, loss="segpgd", random_start=False, select="fooled"), ThreatModel("Linf", 0.1)
    segmenter = PixelSegmenter(model, SPACE, size=(16, 16))
    with attack_mode(model):
        compiled = compile_attack(attack, segmenter, threat_model, backend="aot_eager")(pixels, labels)
        eager = attack(segmenter, pixels, labels, threat_model)
    torch._dynamo.reset()
    assert torch.allclose(compiled.adversarial, eager.adversarial, atol=1e-5)
    assert torch.equal(compiled.predictions, eager.predictions)
