"""No defence passes every trust check with an accuracy that another attack lowers by more than an image."""

import pytest
import torch
from defences import DEFENCES, HARMLESS, digits, trained

from hf_robust_ft import APGD, ThreatModel
from hf_robust_ft.attacks import Square
from hf_robust_ft.trust_checks import run_trust_checks

pytest.importorskip("sklearn")
APGD_10 = APGD(steps=10, random_start=False, select="fooled")
NETWORKS = {"undefended": ((0.0, 8), 0.1), "adversarial": ((0.15, 12), 0.15)}  # (eps, epochs) of training, eps


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    (train_eps, epochs), eps = NETWORKS[request.param]
    return trained(train_eps, epochs), ThreatModel("Linf", eps)


@pytest.fixture(scope="module")
def images():
    _, _, pixels, labels = digits()
    return pixels[:64], labels[:64]


def failed(model, images, threat_model, standing=None):
    checks = run_trust_checks(model, *images, threat_model, APGD_10, standing=standing)
    return {check.name for check in checks if not check.passed}


def withstood(model, images, threat_model):
    """bool (64,): right, and fooled by nothing of what the suite has, on the network itself or under its defence."""
    pixels, labels = images
    stands = model(pixels).argmax(1) == labels
    for attack in (APGD_10, APGD(steps=40, loss="dlr_targeted", random_start=False, select="fooled"), Square(1000)):
        stands &= ~attack(model, pixels, labels, threat_model).fooled
    return stands


# Those that the second opinion must find by itself: the other checks may pass.
BY_SECOND_OPINION = {
    "softmax of 20 z", "one-hot", "fast sine", "honeypot", "rippled honeypot", "three honeypots", "junk gradient",
    "reversed gradient", "rounded input", "infinite top logit", "sigmoid", "noise seeded by the input",
}  # fmt: skip


@pytest.mark.parametrize("name", DEFENCES)
def test_a_defence_is_found_out(network, images, name):
    model, threat_model = network
    found = failed(DEFENCES[name](model), images, threat_model)
    assert found and ("second_opinion" in found or name not in BY_SECOND_OPINION)


@pytest.mark.parametrize("name", HARMLESS)
def test_an_accuracy_that_no_attack_of_the_suite_lowers_passes(network, images, name):
    model, threat_model = network
    model = HARMLESS[name](model)
    assert not failed(model, images, threat_model, standing=withstood(model, images, threat_model))


def test_ten_steps_pass_where_they_find_all_but_an_image(network, images):
    """At half the eps the paper's attack is as good as any, on both networks."""
    model, threat_model = network
    half = ThreatModel("Linf", threat_model.eps / 2)
    assert not failed(model, images, half)
    stands = ~APGD_10(model, *images, half).fooled
    assert int(stands.sum()) - int(withstood(model, images, half).sum()) <= 1


def test_a_gradient_of_one_class_hides_in_sorted_images(network):
    """What the checks say of 64 images of class 0, and of images of every class."""
    model, threat_model = network
    _, _, pixels, labels = digits()
    one_class = torch.cat([pixels[labels == 0]] * 2)[:64]
    defended = DEFENCES["gradient of one class"](model)
    assert "gradients" not in failed(defended, (one_class, torch.zeros(64, dtype=torch.int64)), threat_model)
    assert {"gradients", "second_opinion"} <= failed(defended, (pixels[:64], labels[:64]), threat_model)
