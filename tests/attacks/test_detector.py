"""A detector's own loss, image by image."""

import pytest
import torch
from tiny_detectors import DETECTORS, detr, rt_detr, squares, yolos

from hf_robust_ft import PixelDetector, PixelSpace, ThreatModel, apgd
from hf_robust_ft.attacks.detector import own_losses
from hf_robust_ft.evaluation.batches import stack_boxes

NONE = {"class_labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)}


def batch_of(count):
    batch = stack_boxes(squares(count))
    return batch["pixel_values"], batch["labels"]


def attacked(detector, pixels, steps=4):
    unused = torch.zeros(len(pixels), dtype=torch.long)
    budget = ThreatModel("Linf", "8/255")
    return apgd(detector, pixels, unused, budget, steps=steps, loss="set_loss", random_start=False)


@pytest.mark.parametrize("count", [2, 3])  # two images: as many as the decoders have layers
@pytest.mark.parametrize("kind", DETECTORS)
def test_the_loss_of_each_image_is_the_models_own_as_of_a_batch_of_one(kind, count):
    model = DETECTORS[kind]().eval()
    pixels, labels = batch_of(count)
    ours = PixelDetector(model, labels=labels)(pixels)
    theirs = [model(pixel_values=pixels[i : i + 1], labels=[labels[i]]).loss for i in range(count)]
    assert ours.shape == (count, 1)
    assert torch.allclose(ours[:, 0], torch.stack(theirs), rtol=1e-5)


@pytest.mark.parametrize("kind", DETECTORS)
def test_an_attack_raises_the_loss_of_every_image(kind):
    model = DETECTORS[kind]().eval()
    pixels, labels = batch_of(3)
    detector = PixelDetector(model, labels=[NONE, *labels[1:]])  # one without boxes, too
    result = attacked(detector, pixels)
    with torch.no_grad():
        before = detector(pixels)[:, 0]
    # RT-DETR detaches boxes between its layers, so the gradient of an untrained one leads up for some images only.
    higher = (result.loss > before).any() if kind == "rt_detr" else (result.loss > before).all()
    assert higher and (result.loss >= before).all() and not result.fooled.any()
    assert (result.adversarial - pixels).abs().max() <= 8 / 255 + 1e-6


def test_an_image_without_boxes_is_moved_as_it_is_beside_another():
    """Up to the same constant the loss is that of a batch whose other image nobody changes."""
    model = rt_detr().eval()
    pixels, labels = batch_of(2)
    darker = torch.stack([pixels[0] * 0.5, pixels[1]])
    alone = [PixelDetector(model, labels=[NONE])(each[:1]).item() for each in (pixels, darker)]
    together = [model(pixel_values=each, labels=[NONE, labels[1]]).loss.item() for each in (pixels, darker)]
    assert alone[0] - alone[1] == pytest.approx((together[0] - together[1]) * len(labels[1]["boxes"]), abs=1e-3)


def test_a_loss_function_of_the_users_is_climbed_and_left_in_place():
    model = yolos().eval()
    own = lambda logits, labels, *rest: (logits.square().mean(), {}, None)  # noqa: E731
    model.loss_function = own
    pixels, labels = batch_of(2)
    found = PixelDetector(model, labels=labels)(pixels)
    assert model.loss_function is own
    with torch.no_grad():
        logits = model(pixels).logits
    assert torch.allclose(found[:, 0], logits.square().mean((1, 2)))


def test_the_models_loss_is_as_before_even_where_a_forward_fails():
    model = detr().eval()
    before = model.loss_function
    with pytest.raises(RuntimeError, match="stop"), own_losses(model):
        raise RuntimeError("stop")
    assert model.loss_function is before and "_loss_function" not in vars(model)


def test_the_pixels_are_normalised_and_padding_stays():
    model, space = detr().eval(), PixelSpace((0.5, 0.4, 0.3), (0.2, 0.2, 0.3))
    pixels, labels = batch_of(2)
    mask = torch.ones(2, 32, 32, dtype=torch.long)
    mask[:, :, 20:] = 0
    detector = PixelDetector(model, space, labels, {"pixel_mask": mask})
    inputs = space.from_pixels(pixels) * mask[:, None]
    assert torch.allclose(detector.detect(pixels).logits, model(inputs, pixel_mask=mask).logits, atol=1e-5)
    result = attacked(detector, pixels)
    assert (result.adversarial - pixels)[..., 20:].abs().max() == 0


def test_what_has_no_loss_of_boxes_is_refused_by_name():
    pixels, labels = batch_of(2)
    with pytest.raises(ValueError, match="Sequential has no loss of its own"):
        PixelDetector(torch.nn.Sequential(torch.nn.Flatten()), labels=labels)(pixels)
    with pytest.raises(ValueError, match="give the labels of the images"):
        PixelDetector(yolos())(pixels)
    with pytest.raises(ValueError, match="'set_loss' is a detection model's own"):
        attacked(lambda x: x.flatten(1)[:, :4], pixels)  # a classifier's logits
