"""APGD that searches larger balls first."""

from dataclasses import replace

import pytest
import torch

from hf_robust_ft import APGD, PixelClassifier, ThreatModel, apgd
from hf_robust_ft.attacks import attack_until_fooled, compile_attack
from hf_robust_ft.attacks.balls import BALLS
from hf_robust_ft.attacks.larger_eps import eps_phases
from hf_robust_ft.attacks.losses import get_loss

RADII = {"Linf": 0.06, "L2": 1.0, "L1": 12.0}
EVERY_NORM = pytest.mark.parametrize("norm", list(BALLS))
ANY_START = pytest.mark.parametrize("random_start", [False, True])


@pytest.fixture
def pixels():
    return torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def classifier(make_model):
    return PixelClassifier(make_model("resnet")).eval()


def predict(classifier, pixels):
    with torch.no_grad():
        return classifier(pixels).argmax(1)


def spread_radii(norm):
    return RADII[norm] * torch.logspace(-2, 2, 12)


def norm_of(change, norm):
    return change.double().flatten(1).norm({"Linf": float("inf"), "L2": 2, "L1": 1}[norm], dim=1)


def assert_inside(result, pixels, norm, eps):
    assert (norm_of(result.adversarial.double() - pixels.double(), norm) <= torch.as_tensor(eps).double()).all()
    assert result.adversarial.min() >= 0 and result.adversarial.max() <= 1


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 10, 33, 40, 100])
def test_phases_shrink_to_eps_and_spend_all_steps(steps):
    phases = eps_phases(APGD(steps=steps, larger_eps=True))
    assert sum(phase.steps for phase in phases) == steps and phases[-1].factor == 1
    assert [phase.factor for phase in phases] == ([3, 2, 1] if steps >= 4 else [1])
    assert phases[-1].steps >= 0.4 * steps and all(phase.steps >= 1 for phase in phases)


@EVERY_NORM
@ANY_START
@pytest.mark.parametrize("loss", ["ce", "dlr_targeted"])
@pytest.mark.parametrize("select", ["loss", "fooled"])
def test_result_is_inside_each_images_own_ball_and_as_told(classifier, pixels, norm, random_start, loss, select):
    labels, eps = predict(classifier, pixels), spread_radii(norm)
    attack = APGD(7, loss, random_start, select=select, num_targets=2, larger_eps=True)
    result = attack(classifier, pixels, labels, ThreatModel(norm, RADII[norm]), eps=eps)
    assert_inside(result, pixels, norm, eps)
    predictions = predict(classifier, result.adversarial)
    assert torch.equal(result.predictions, predictions) and torch.equal(result.fooled, predictions != labels)
    assert result.loss.isfinite().all() and result.fooled.any() and not result.fooled.all()


@EVERY_NORM
def test_larger_balls_are_visited_first_and_each_phase_begins_in_its_own(classifier, pixels, norm):
    labels, visited = predict(classifier, pixels), []
    attack = APGD(steps=10, random_start=False, larger_eps=True)
    attack(lambda x: visited.append(x) or classifier(x), pixels, labels, ThreatModel(norm, RADII[norm]))
    distances = torch.stack([norm_of(x.detach().double() - pixels.double(), norm) for x in visited]) / RADII[norm]
    assert len(visited) == 13 and [x.requires_grad for x in visited].count(True) == 10
    assert (distances[1:4] > 1.5).any(0).all() and (distances[:4] <= 3).all()
    assert (distances[4:8] <= 2).all() and (distances[8:] <= 1).all()


@EVERY_NORM
def test_a_clean_start_is_never_made_worse(classifier, pixels, norm):
    """Also where the larger balls led nowhere: the image itself is among the points to choose from."""
    labels = predict(classifier, pixels)
    result = apgd(classifier, pixels, labels, ThreatModel(norm, RADII[norm]), random_start=False, larger_eps=True)
    with torch.no_grad():
        before = get_loss("ce").objective(classifier(pixels), labels, None)
    assert (result.loss >= before - 1e-6).all() and (result.loss > before).any()


@EVERY_NORM
@ANY_START
def test_stopping_once_fooled_fools_the_same_images(classifier, pixels, norm, random_start):
    labels, eps = predict(classifier, pixels), spread_radii(norm)
    labels[0] = (labels[0] + 1) % 4  # misclassified as it is
    attack = APGD(steps=10, random_start=random_start, select="fooled", larger_eps=True)
    whole, early = (
        run(classifier, pixels, labels, ThreatModel(norm, RADII[norm]), eps=eps)
        for run in (attack, lambda *args, **options: attack_until_fooled(attack, *args, **options))
    )
    assert torch.equal(early.fooled, whole.fooled) and whole.fooled.sum() > 1 and not whole.fooled.all()
    assert_inside(early, pixels, norm, eps)
    predictions = predict(classifier, early.adversarial)
    assert torch.equal(early.predictions, predictions) and torch.equal(early.fooled, predictions != labels)


def test_what_is_fooled_in_a_larger_ball_only_stands():
    """Brightness above 0.6 is wrong: images at 0.4 need a change of 0.2 a pixel."""
    pixels, labels = torch.full((3, 1, 2, 2), 0.4), torch.zeros(3, dtype=torch.int64)

    def logits_fn(x):
        brightness = x.flatten(1).mean(1)
        return torch.stack([torch.full_like(brightness, 0.6), brightness], 1)

    attack = APGD(steps=10, random_start=False, select="fooled", larger_eps=True)
    eps = torch.tensor([0.1, 0.19, 0.21])  # 0.3 and 0.57 would do for all three
    for run in (attack, lambda *args, **options: attack_until_fooled(attack, *args, **options)):
        result = run(logits_fn, pixels, labels, ThreatModel("Linf", 0.1), eps=eps)
        assert result.fooled.tolist() == [False, False, True]
        assert_inside(result, pixels, "Linf", eps)


def test_below_four_steps_it_is_the_plain_attack(classifier, pixels):
    labels, threat_model = predict(classifier, pixels), ThreatModel("L1", 12)
    for steps in (1, 3):
        plain, larger = (
            APGD(steps=steps, larger_eps=larger)(classifier, pixels, labels, threat_model) for larger in (False, True)
        )
        assert torch.equal(plain.adversarial, larger.adversarial)


def test_it_finds_what_plain_steps_under_l1_miss(classifier, pixels):
    labels = predict(classifier, pixels)
    losses = {
        larger: apgd(classifier, pixels, labels, ThreatModel("L1", 12), random_start=False, larger_eps=larger).loss
        for larger in (False, True)
    }
    assert losses[True].mean() > losses[False].mean()


@ANY_START
def test_nothing_waits_for_the_device(random_start):
    pixels, labels = torch.empty(2, 3, 4, 4, device="meta"), torch.empty(2, dtype=torch.int64, device="meta")
    attack = APGD(steps=10, random_start=random_start, larger_eps=True)
    result = attack(lambda x: x.flatten(1), pixels, labels, ThreatModel("L1", 1.0))
    assert result.adversarial.shape == pixels.shape and result.fooled.shape == (2,)


def test_compiled_it_is_one_graph_and_the_same_attack(pixels):
    """Under Linf, whose graph is the smallest: the phases do not depend on the norm."""
    torch._dynamo.reset()
    matrix, labels = torch.randn(768, 4, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 4

    def logits_fn(x):
        return x.flatten(1) @ matrix

    attack, threat_model = APGD(steps=4, larger_eps=True), ThreatModel("Linf", 0.1)
    compiled = compile_attack(attack, logits_fn, threat_model, backend="aot_eager")
    result, eager = compiled(pixels, labels), attack(logits_fn, pixels, labels, threat_model)
    assert torch.allclose(result.adversarial, eager.adversarial, atol=1e-5)
    assert torch.equal(result.fooled, eager.fooled)
    torch._dynamo.reset()


def test_an_earlier_find_is_not_left_for_larger_balls(classifier, pixels):
    labels, threat_model = predict(classifier, pixels), ThreatModel("L1", 12)
    attack = APGD(random_start=False, larger_eps=True)
    for run in (attack, lambda *args, **options: attack_until_fooled(attack, *args, **options)):
        with pytest.raises(ValueError, match="pass `start` without larger_eps"):
            run(classifier, pixels, labels, threat_model, start=pixels)


@pytest.mark.parametrize("value", [None, 1, "yes"])
def test_it_is_on_or_off(value):
    with pytest.raises(ValueError, match="larger_eps to be True or False"):
        APGD(larger_eps=value)


def test_its_name_tells():
    attack = APGD(steps=7, random_start=False, larger_eps=True)
    assert str(attack) == "APGD-CE-7, clean start, larger eps first"
    assert str(replace(attack, larger_eps=False)) == "APGD-CE-7, clean start"
