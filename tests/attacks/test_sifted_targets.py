from dataclasses import replace
from functools import partial

import pytest
import torch

from hf_robust_ft import APGD, PixelClassifier, ThreatModel
from hf_robust_ft.attacks import attack_until_fooled
from hf_robust_ft.attacks.pass_meter import PassMeter
from hf_robust_ft.attacks.sifted_targets import SiftedTargets
from hf_robust_ft.attacks.until_fooled import FollowUp


@pytest.fixture
def classifier(make_model):
    return PixelClassifier(make_model("vit")).eval()


@pytest.fixture
def pixels():
    return torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def clean_predictions(classifier, pixels):
    with torch.no_grad():
        return classifier(pixels).argmax(1)


def behind_flat_classes(x):
    """Classes 1 to 3 are the likeliest wrong ones at grey images, and flat; class 4 rises and wins at 0.8."""
    mean = x.flatten(1).mean(1, keepdim=True)
    flat = 0 * mean
    return torch.cat([flat, flat - 1, flat - 1.5, flat - 2, 10 * (mean - 0.8)], 1)


def test_the_class_that_can_be_reached_is_found_whatever_its_rank():
    pixels, labels = torch.full((2, 3, 4, 4), 0.5), torch.zeros(2, dtype=torch.int64)
    threat_model, eps = ThreatModel("Linf", 0.4), torch.tensor([0.4, 0.1])
    attack = SiftedTargets(steps=6, sifting=1)
    options = {"eps": eps}
    found = attack_until_fooled(attack, behind_flat_classes, pixels, labels, threat_model, **options)
    assert found.fooled.tolist() == [True, False] and found.predictions.tolist() == [4, 0]
    assert ((found.adversarial - pixels).abs().amax((1, 2, 3)) <= eps + 1e-7).all()
    assert torch.equal(attack(behind_flat_classes, pixels, labels, threat_model, **options).fooled, found.fooled)
    likeliest = APGD(steps=6, loss="dlr_targeted", num_targets=1, random_start=False)
    assert not attack_until_fooled(likeliest, behind_flat_classes, pixels, labels, threat_model, **options).fooled.any()


def test_an_image_that_falls_while_classes_are_tried_is_found(classifier, pixels):
    labels, threat_model = clean_predictions(classifier, pixels), ThreatModel("Linf", 0.2)
    for sifting in (1, 3, 6):
        every = SiftedTargets(steps=6, num_targets=3, kept=3)
        sifted = replace(every, sifting=sifting, kept=1)
        whole = attack_until_fooled(replace(every, steps=6), classifier, pixels, labels, threat_model).fooled
        fooled = attack_until_fooled(sifted, classifier, pixels, labels, threat_model).fooled
        assert fooled.any() and not (fooled & ~whole).any()
        assert sifting < 6 or torch.equal(fooled, whole)  # all steps towards each class: nothing is lost by the choice


def test_what_becomes_of_an_image_does_not_depend_on_its_batch(classifier, pixels):
    labels, threat_model = clean_predictions(classifier, pixels), ThreatModel("Linf", 0.03)
    attack = SiftedTargets(steps=5, sifting=2, num_targets=3)
    together = attack(classifier, pixels, labels, threat_model)
    alone = [attack(classifier, pixels[i : i + 1], labels[i : i + 1], threat_model) for i in range(len(labels))]
    torch.testing.assert_close(together.adversarial, torch.cat([each.adversarial for each in alone]))


ATTACKS = [
    (SiftedTargets(steps=6, sifting=2), "Linf"),
    (SiftedTargets(steps=6, sifting=6), "Linf"),
    (SiftedTargets(steps=6, kept=3, num_targets=3), "L2"),
    (SiftedTargets(steps=10, sifting=7, kept=2, larger_eps=True), "L1"),
    (SiftedTargets(steps=10, sifting=6, larger_eps=True), "L1"),
    (FollowUp(steps=6, num_targets=3, sifting=2), "Linf"),
    (FollowUp(steps=6, num_targets=2, kept=2), "Linf"),
]


@pytest.mark.parametrize(("attack", "norm"), ATTACKS, ids=lambda value: str(value))
def test_it_costs_what_it_says(classifier, pixels, attack, norm):
    labels, eps = clean_predictions(classifier, pixels), torch.full((12,), 1e-6)
    search = attack.until_fooled if isinstance(attack, FollowUp) else partial(attack_until_fooled, attack)
    with PassMeter(classifier) as meter:
        assert not search(classifier, pixels, labels, ThreatModel(norm, 1e-6), eps=eps).fooled.any()
    gradients, forwards = attack.passes(num_classes=4)
    assert (meter.gradients, meter.forwards - meter.gradients) == (12 * gradients, 12 * forwards)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SiftedTargets(steps=4), r"sifting to be a whole number from 1 to steps=4, got 5"),
        (lambda: SiftedTargets(kept=0), r"kept to be a whole number .* got 0"),
        (lambda: SiftedTargets(random_start=True), r"compares runs from one start: leave random_start=False"),
        (lambda: FollowUp(larger_eps=True), r"lead away .* leave larger_eps=False"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
