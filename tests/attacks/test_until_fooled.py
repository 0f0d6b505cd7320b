from dataclasses import replace

import pytest
import torch

from hf_robust_ft import APGD, PixelClassifier, ThreatModel
from hf_robust_ft.attacks import attack_until_fooled
from hf_robust_ft.attacks.until_fooled import FollowUp

RADII = {"Linf": 0.06, "L2": 1.0, "L1": 12.0}


@pytest.fixture(params=["vit", "resnet"])
def classifier(request, make_model):
    return PixelClassifier(make_model(request.param)).eval()


@pytest.fixture
def pixels():
    return torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def clean_predictions(classifier, pixels):
    with torch.no_grad():
        return classifier(pixels).argmax(1)


class Counter:
    """Notes for each call how many images it held and whether a gradient was asked for."""

    def __init__(self, logits_fn):
        self.logits_fn, self.calls = logits_fn, []

    def __call__(self, x):
        self.calls.append((len(x), x.requires_grad))
        return self.logits_fn(x)

    @property
    def image_gradients(self) -> int:
        return sum(count for count, with_gradient in self.calls if with_gradient)


def spread_radii(norm):
    """A radius per image, from hopeless to certain: some are fooled and some stand."""
    return RADII[norm] * torch.logspace(-2, 2, 12)


@pytest.mark.parametrize("norm", list(RADII))
@pytest.mark.parametrize("loss", ["ce", "dlr", "dlr_targeted"])
def test_fools_the_images_that_the_whole_attack_fools_for_less(classifier, pixels, norm, loss):
    labels = clean_predictions(classifier, pixels)
    labels[0] = (labels[0] + 1) % 4  # misclassified as it is
    eps = spread_radii(norm)
    attack = APGD(steps=8, loss=loss, random_start=False, select="fooled", num_targets=2)
    threat_model = ThreatModel(norm, RADII[norm])
    whole, early = Counter(classifier), Counter(classifier)
    expected = attack(whole, pixels, labels, threat_model, eps=eps)
    result = attack_until_fooled(attack, early, pixels, labels, threat_model, eps=eps)
    assert torch.equal(result.fooled, expected.fooled)
    assert result.fooled.sum() > 1 and not result.fooled.all()
    assert early.image_gradients < whole.image_gradients
    order = {"Linf": float("inf"), "L2": 2, "L1": 1}[norm]
    distance = (result.adversarial.double() - pixels.double()).flatten(1).norm(order, dim=1)
    assert (distance <= eps.double()).all() and distance[0] == 0
    assert result.adversarial.min() >= 0 and result.adversarial.max() <= 1
    with torch.no_grad():
        predictions = classifier(result.adversarial).argmax(1)
    assert torch.equal(result.predictions, predictions) and torch.equal(result.fooled, predictions != labels)


def test_the_selection_of_the_attack_does_not_matter(classifier, pixels):
    labels = clean_predictions(classifier, pixels)
    attack = APGD(steps=6, random_start=False)
    by_loss, by_error = (
        attack_until_fooled(replace(attack, select=select), classifier, pixels, labels, ThreatModel("Linf", 0.6))
        for select in ("loss", "fooled")
    )
    assert torch.equal(by_loss.adversarial, by_error.adversarial) and by_loss.fooled.any()


def test_each_image_leaves_at_its_first_misclassified_point():
    """A step changes every pixel by eps at most, so the brightest images cross a threshold first."""
    pixels = torch.full((3, 3, 4, 4), 0.4) + torch.tensor([0.2, 0.0, -0.3]).view(-1, 1, 1, 1)
    labels = torch.zeros(3, dtype=torch.int64)

    def logits_fn(x):
        brightness = x.flatten(1).mean(1)
        return torch.stack([torch.full_like(brightness, 0.5), brightness], 1)

    counter = Counter(logits_fn)
    result = attack_until_fooled(APGD(steps=5, random_start=False), counter, pixels, labels, ThreatModel("Linf", 0.15))
    assert result.fooled.tolist() == [True, True, False]
    # The first image is wrong as it is, the second after one step, the third stands to the end.
    assert [count for count, _ in counter.calls] == [3, 2, 1, 1, 1, 1]
    assert torch.equal(result.adversarial[0], pixels[0])


def test_restarts_run_on_the_standing_only(classifier, pixels):
    labels = clean_predictions(classifier, pixels)
    counter = Counter(classifier)
    eps = spread_radii("Linf")
    attack, threat_model = APGD(steps=4, restarts=1), ThreatModel("Linf", 0.06)
    settings = {"eps": eps, "generator": torch.Generator().manual_seed(0)}
    standing = int((~attack_until_fooled(attack, counter, pixels, labels, threat_model, **settings).fooled).sum())
    assert 0 < standing < 12
    first_run = len(counter.calls)
    counter.calls.clear()
    settings["generator"].manual_seed(0)
    twice = attack_until_fooled(replace(attack, restarts=2), counter, pixels, labels, threat_model, **settings)
    assert counter.calls[0] == (12, True) and counter.calls[first_run] == (standing, True)
    assert (~twice.fooled).sum() <= standing


def test_targets_are_tried_on_the_standing_only(classifier, pixels):
    labels = clean_predictions(classifier, pixels)
    eps = spread_radii("Linf")
    attack, threat_model = APGD(steps=4, loss="dlr_targeted", num_targets=1, random_start=False), ThreatModel("Linf")
    one, three = Counter(classifier), Counter(classifier)
    standing = int((~attack_until_fooled(attack, one, pixels, labels, threat_model, eps=eps).fooled).sum())
    more = attack_until_fooled(replace(attack, num_targets=3), three, pixels, labels, threat_model, eps=eps)
    assert 0 < standing < 12 and (~more.fooled).sum() <= standing
    assert three.calls[: len(one.calls)] == one.calls and three.calls[len(one.calls)] == (standing, True)


def test_nothing_more_is_run_once_every_image_is_fooled(classifier, pixels):
    labels = (clean_predictions(classifier, pixels) + 1) % 4
    counter = Counter(classifier)
    attack = APGD(steps=10, restarts=5, random_start=False)
    result = attack_until_fooled(attack, counter, pixels, labels, ThreatModel("L2", 1.0))
    assert len(counter.calls) == 1 and result.fooled.all() and torch.equal(result.adversarial, pixels)


def test_a_warm_start_is_gone_on_from(classifier, pixels):
    labels = clean_predictions(classifier, pixels)
    threat_model = ThreatModel("Linf", 0.02)
    attack = APGD(steps=3, random_start=False)
    start = attack(classifier, pixels, labels, threat_model).adversarial
    result = attack_until_fooled(attack, classifier, pixels, labels, threat_model, start=start)
    with torch.no_grad():
        before = torch.nn.functional.cross_entropy(classifier(start), labels, reduction="none")
    assert ((result.loss >= before - 1e-6) | result.fooled).all()


def test_eps_zero_costs_one_forward(classifier, pixels):
    labels = clean_predictions(classifier, pixels)
    counter = Counter(classifier)
    result = attack_until_fooled(APGD(restarts=3), counter, pixels, labels, ThreatModel("L1", 1.0), eps=0)
    assert counter.calls == [(12, False)] and torch.equal(result.adversarial, pixels) and not result.fooled.any()


def test_an_eps_of_zero_for_one_image_leaves_it_as_it_is(classifier, pixels):
    labels = clean_predictions(classifier, pixels)
    eps = torch.full((12,), 0.3)
    eps[4] = 0
    result = attack_until_fooled(APGD(steps=3), classifier, pixels, labels, ThreatModel("Linf", 0.3), eps=eps)
    assert torch.equal(result.adversarial[4], pixels[4]) and not result.fooled[4] and result.fooled.any()


def behind_a_flat_class(x):
    """Class 1 is the likeliest wrong one at grey images, and flat; class 2 rises with the pixels and wins at 0.8."""
    mean = x.flatten(1).mean(1, keepdim=True)
    return torch.cat([0 * mean, 0 * mean - 1, 10 * (mean - 0.8), 0 * mean - 9, 0 * mean - 9.5], 1)


def test_a_follow_up_aims_at_what_is_likeliest_where_cross_entropy_leads():
    pixels, labels = torch.full((2, 3, 4, 4), 0.5), torch.zeros(2, dtype=torch.int64)
    threat_model, eps = ThreatModel("Linf", 0.4), torch.tensor([0.4, 0.1])
    attack, at_the_image = FollowUp(steps=5, num_targets=1), []

    def watched(x):
        at_the_image.append(bool((x == 0.5).flatten(1).all(1).any()))
        return behind_a_flat_class(x)

    found = attack.until_fooled(watched, pixels, labels, threat_model, eps=eps)
    assert found.fooled.tolist() == [True, False] and found.predictions.tolist() == [2, 0]
    assert ((found.adversarial - pixels).abs().amax((1, 2, 3)) <= eps + 1e-7).all()
    assert at_the_image[0] and not any(at_the_image[1:])
    assert not attack_until_fooled(attack, behind_a_flat_class, pixels, labels, threat_model, eps=eps).fooled.any()
