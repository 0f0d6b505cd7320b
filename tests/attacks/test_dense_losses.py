"""Losses of one label a pixel: their equations, what they do not count, and the attack that climbs them."""

import math

import pytest
import torch
import torch.nn.functional as F

from hf_robust_ft import ThreatModel, apgd
from hf_robust_ft.attacks import dense_losses
from hf_robust_ft.attacks.losses import LOSSES, get_loss

DENSE = [name for name, loss in LOSSES.items() if loss.dense]
EVALUATING = [name for name in DENSE if not LOSSES[name].needs_reference]
RADII = {"Linf": 4 / 255, "L2": 0.5, "L1": 6.0}
CLASSES = 5


@pytest.fixture
def scene():
    """Logits (3, 5, 6, 7) and labels with ignored pixels, all kinds of pixels among them."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(3, CLASSES, 6, 7, generator=generator)
    labels = torch.randint(0, CLASSES, (3, 6, 7), generator=generator)
    labels = torch.where(torch.rand(3, 6, 7, generator=generator) < 0.5, logits.argmax(1), labels)
    labels[:, :2, 3:] = dense_losses.IGNORED
    return logits, labels


@pytest.fixture(scope="module")
def segmenter():
    """A small random network with stride, from pixels (N, 3, 16, 16) to logits of the same size, and a batch."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, 2, 1), torch.nn.GELU(), torch.nn.Conv2d(16, 16, 3, 1, 1), torch.nn.GELU()
    ).append(torch.nn.Conv2d(16, CLASSES, 1))
    with torch.no_grad():
        network[-1].weight.mul_(20)
    network.requires_grad_(False)

    def logits_fn(pixels):
        return F.interpolate(network(pixels), size=pixels.shape[-2:], mode="bilinear", align_corners=False)

    pixels = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    labels = logits_fn(pixels).argmax(1)
    labels[:, :3] = (labels[:, :3] + 1) % CLASSES  # some are wrong from the start
    labels[:, -3:] = dense_losses.IGNORED
    return logits_fn, pixels, labels


def by_pixels(logits, labels, value):
    """The mean of `value(logits (K,), label)` over the labelled pixels of each image, the long way."""
    means = []
    for image, mask in zip(logits, labels, strict=True):
        each = [value(image[:, i, j], int(mask[i, j])) for i, j in (mask >= 0).nonzero().tolist()]
        means.append(sum(each) / len(each))
    return torch.stack(means)


def ce(z, y):
    return -z.log_softmax(0)[y]


def right(z, y):
    return float(z.argmax() == y)


def js_divergence(z, y):
    p, q = z.softmax(0), F.one_hot(torch.tensor(y), len(z)).float()
    middle = (p + q) / 2
    kl = lambda a: (a * (a.clamp(min=1e-30) / middle).log()).sum()  # noqa: E731
    return (kl(p) + kl(q)) / 2


EQUATIONS = {
    "pixel_ce": lambda z, y: ce(z, y),
    "segpgd": lambda z, y: right(z, y) * ce(z, y),
    "masked_ce": lambda z, y: right(z, y) * ce(z, y),
    "js": js_divergence,
    "masked_spherical": lambda z, y: -right(z, y) * z[y] / z.norm(),
}


@pytest.mark.parametrize("name", EQUATIONS)
def test_a_loss_is_its_papers_mean_over_the_labelled_pixels(scene, name):
    logits, labels = scene
    is_logarithm = name not in ("js", "masked_spherical")
    found = getattr(dense_losses, name)(logits, labels)
    found = found.exp() if is_logarithm else found
    assert torch.allclose(found, by_pixels(logits, labels, EQUATIONS[name]), rtol=1e-4)


@pytest.mark.parametrize("done", [0.25, 0.9])
def test_segpgd_weighs_wrong_pixels_by_half_the_share_of_steps_done(scene, done):
    logits, labels = scene
    expected = by_pixels(logits, labels, lambda z, y: ce(z, y) * (1 - done / 2 if right(z, y) else done / 2))
    assert torch.allclose(dense_losses.segpgd(logits, labels, done).exp(), expected, rtol=1e-4)


def test_the_balanced_loss_weighs_each_class_by_the_inverse_of_its_pixels(scene):
    logits, labels = scene
    counts = [torch.bincount(mask[mask >= 0], minlength=CLASSES) for mask in labels]
    each = [
        by_pixels(logits[i : i + 1], labels[i : i + 1], lambda z, y, n=count: right(z, y) * ce(z, y) / n[y])
        for i, count in enumerate(counts)
    ]
    assert torch.allclose(dense_losses.masked_ce_balanced(logits, labels).exp(), torch.cat(each), rtol=1e-4)


def test_pixel_kl_is_the_mean_divergence_from_the_clean_answers(scene):
    logits, labels = scene
    clean = torch.randn_like(logits).log_softmax(1)
    found = dense_losses.pixel_kl(logits, labels, clean)
    each = (clean.exp() * (clean - logits.log_softmax(1))).sum(1)
    expected = torch.stack([values[mask >= 0].mean() for values, mask in zip(each, labels, strict=True)])
    assert torch.allclose(found, expected, rtol=1e-4)
    assert torch.equal(dense_losses.pixel_kl(clean, labels, clean.log_softmax(1)).abs() < 1e-6, torch.ones(3).bool())


@pytest.mark.parametrize("name", DENSE)
def test_what_an_ignored_pixel_says_does_not_matter(scene, name):
    logits, labels = scene
    third = logits.roll(1, 0).log_softmax(1) if LOSSES[name].needs_reference else None
    changed = torch.where(labels[:, None] < 0, 100 * torch.randn_like(logits), logits).requires_grad_()
    found = LOSSES[name].objective(changed, labels, third)
    assert torch.allclose(found, LOSSES[name].objective(logits, labels, third), rtol=1e-5)
    (gradient,) = torch.autograd.grad(found.sum(), changed)
    assert not gradient.masked_select(labels[:, None] < 0).any() and gradient.isfinite().all()


@pytest.mark.parametrize("name", DENSE)
def test_no_gradient_is_nan_where_no_pixel_is_right_or_labelled(name):
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = (logits.argmax(1) + 1) % 3
    labels[1] = dense_losses.IGNORED
    third = logits.detach().roll(1, 0).log_softmax(1) if LOSSES[name].needs_reference else None
    (gradient,) = torch.autograd.grad(LOSSES[name].objective(logits, labels, third).sum(), logits)
    assert gradient.isfinite().all() and not gradient[1].any()


def test_cross_entropy_has_a_gradient_where_every_pixel_is_right_by_a_wide_margin():
    logits = torch.zeros(1, 2, 2, 2)
    logits[:, 0] = 60.0
    logits.requires_grad_()
    labels = torch.zeros(1, 2, 2, dtype=torch.int64)
    (gradient,) = torch.autograd.grad(dense_losses.pixel_ce(logits, labels).sum(), logits)
    assert torch.allclose(gradient[:, 0], torch.full((1, 2, 2), -0.25))
    (plain,) = torch.autograd.grad(F.cross_entropy(logits, labels), logits)
    assert not plain[:, 0].any()


@pytest.mark.parametrize("norm", RADII)
@pytest.mark.parametrize("name", EVALUATING)
def test_the_attack_stays_in_the_ball_and_never_falls_below_its_start(segmenter, name, norm):
    logits_fn, pixels, labels = segmenter
    threat_model = ThreatModel(norm, RADII[norm])
    clean = apgd(logits_fn, pixels, labels, threat_model, loss=name, eps=0.0)
    found = apgd(logits_fn, pixels, labels, threat_model, loss=name, steps=5, random_start=False)
    assert (threat_model.ball(pixels).distance(found.adversarial) <= threat_model.eps * (1 + 1e-6)).all()
    assert (found.loss >= clean.loss).all() and (found.loss > clean.loss).any()
    logits = logits_fn(found.adversarial)
    assert torch.equal(found.predictions, logits.argmax(1))
    if name != "masked_spherical":
        assert torch.allclose(found.loss, by_pixels(logits, labels, ce), rtol=1e-3)
    assert found.fooled.shape == (6,)
    right_share = (found.predictions == labels).sum((1, 2)) / (labels >= 0).sum((1, 2))
    assert torch.equal(found.fooled, right_share < 0.5)


def test_each_image_has_its_own_eps_and_its_own_attack(segmenter):
    logits_fn, pixels, labels = segmenter
    radii = torch.linspace(0, 8 / 255, 6)
    threat_model = ThreatModel("Linf", "8/255")
    found = apgd(logits_fn, pixels, labels, threat_model, loss="pixel_ce", steps=4, eps=radii, random_start=False)
    assert ((found.adversarial - pixels).abs().amax((1, 2, 3)) <= radii).all()
    assert torch.equal(found.adversarial[0], pixels[0])
    alone = apgd(
        logits_fn, pixels[4:5], labels[4:5], threat_model, loss="pixel_ce", steps=4, eps=radii[4:5], random_start=False
    )
    assert torch.allclose(found.adversarial[4:5], alone.adversarial, atol=1e-5)


@pytest.mark.parametrize("name", EVALUATING)
def test_selecting_the_fooled_keeps_the_point_with_the_fewest_right_pixels(segmenter, name):
    logits_fn, pixels, labels = segmenter
    seen = []

    def spy(x):
        logits = logits_fn(x)
        seen.append((logits.argmax(1) == labels).sum((1, 2)))
        return logits

    found = apgd(spy, pixels, labels, ThreatModel("Linf", "4/255"), loss=name, steps=6, select="fooled")
    assert torch.equal((found.predictions == labels).sum((1, 2)), torch.stack(seen).amin(0))


@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("name", ["masked_ce", "segpgd", "js"])
def test_larger_balls_first_end_inside_the_one_that_was_asked_for(segmenter, name, random_start):
    logits_fn, pixels, labels = segmenter
    threat_model = ThreatModel("Linf", "4/255")
    found = apgd(
        logits_fn,
        pixels,
        labels,
        threat_model,
        loss=name,
        steps=10,
        larger_eps=True,
        select="fooled",
        random_start=random_start,
    )
    assert (found.adversarial - pixels).abs().max() <= threat_model.eps
    assert torch.equal(found.predictions, logits_fn(found.adversarial).argmax(1))


@pytest.mark.parametrize("name", DENSE)
def test_every_dense_attack_runs_without_looking_at_a_value(name):
    pixels, labels = torch.empty(2, 3, 8, 8, device="meta"), torch.empty(2, 8, 8, dtype=torch.int64, device="meta")
    weight = torch.empty(4, 3, 1, 1, device="meta")
    found = apgd(
        lambda x: F.conv2d(x, weight),
        pixels,
        labels,
        ThreatModel("Linf", "4/255"),
        loss=name,
        steps=4,
        select="fooled",
        larger_eps=True,
    )
    assert found.predictions.shape == (2, 8, 8) and found.fooled.shape == (2,)


@pytest.mark.parametrize("name", ["pixel_ce", "segpgd", "masked_ce"])
def test_half_precision_loses_no_gradient_of_a_loss_of_pixels(segmenter, name):
    logits_fn, pixels, labels = segmenter
    with torch.autocast("cpu", torch.bfloat16):
        found = apgd(logits_fn, pixels, labels, ThreatModel("Linf", "4/255"), loss=name, steps=4, random_start=False)
        clean = apgd(logits_fn, pixels, labels, ThreatModel("Linf", "4/255"), loss=name, eps=0.0)
    assert found.adversarial.dtype == torch.float32 and (found.loss > clean.loss).all()


def reference_pgd(logits_fn, pixels, labels, eps, steps, weigh_by_progress):
    """Projected sign steps of eps / 4 on SegPGD's loss, or on cross-entropy: the best mean cross-entropy seen, (N,)."""
    counts = labels >= 0
    mean = lambda values: (values * counts).sum((1, 2)) / counts.sum((1, 2))  # noqa: E731
    x, best = pixels.clone(), torch.full((len(pixels),), -math.inf)
    for t in range(steps + 1):
        x = x.detach().requires_grad_()
        logits = logits_fn(x)
        losses = F.cross_entropy(logits, labels, reduction="none", ignore_index=dense_losses.IGNORED)
        best = torch.maximum(best, mean(losses).detach())
        is_right, share = (logits.argmax(1) == labels).float(), t / (2 * steps)
        weights = (1 - share) * is_right + share * (1 - is_right) if weigh_by_progress else 1.0
        (gradient,) = torch.autograd.grad(mean(weights * losses).sum(), x)
        x = (pixels + (x + eps / 4 * gradient.sign() - pixels).clamp(-eps, eps)).clamp(0, 1)
    return best


@pytest.mark.parametrize(("name", "weighed"), [("pixel_ce", False), ("segpgd", True)])
def test_at_equal_steps_it_reaches_no_less_than_plain_pgd(segmenter, name, weighed):
    logits_fn, pixels, labels = segmenter
    found = apgd(logits_fn, pixels, labels, ThreatModel("Linf", "24/255"), loss=name, steps=20, random_start=False).loss
    plain = reference_pgd(logits_fn, pixels, labels, 24 / 255, 20, weighed)
    assert found.mean() >= plain.mean() and (found >= 0.98 * plain).all()


def test_a_loss_of_the_wrong_kind_of_labels_is_refused(segmenter):
    logits_fn, pixels, labels = segmenter
    threat_model = ThreatModel("Linf", "4/255")
    with pytest.raises(ValueError, match=r"labels must be class indices of shape \(6,\)"):
        apgd(logits_fn, pixels, labels, threat_model)
    with pytest.raises(ValueError, match="use loss='pixel_ce' for a segmentation model"):
        apgd(logits_fn, pixels, labels[:, 0, 0], threat_model)
    with pytest.raises(ValueError, match=r"labels must be class indices of shape \(6, H, W\), one a pixel"):
        apgd(logits_fn, pixels, labels[:, 0, 0], threat_model, loss="pixel_ce")
    with pytest.raises(ValueError, match="PixelSegmenter"):
        apgd(logits_fn, pixels, labels[:, :8, :8], threat_model, loss="pixel_ce")
    assert get_loss("pixel_ce").dense and not get_loss("ce").dense
