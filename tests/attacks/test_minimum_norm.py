import math
from dataclasses import replace

import pytest
import torch
from defences import digits, trained

from hf_robust_ft import APGD, PixelClassifier, ThreatModel
from hf_robust_ft.attacks import smallest_fooling_eps
from hf_robust_ft.attacks.balls import BALLS
from hf_robust_ft.attacks.threat_model import default_epsilons
from hf_robust_ft.evaluation.protocols import attack_on_grid, evaluation_attack

RADII = {"Linf": 0.6, "L2": 8.0, "L1": 100.0}  # large enough to fool some images of each tiny model
ATTACK = APGD(steps=10, random_start=False, select="fooled")
EVERY_NORM = pytest.mark.parametrize("norm", list(BALLS))


@pytest.fixture(params=["vit", "resnet"])
def classifier(request, make_model):
    return PixelClassifier(make_model(request.param)).eval()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(12, 3, 16, 16, generator=generator)


def predict(logits_fn, x):
    with torch.no_grad():
        return logits_fn(x).argmax(1)


def grid_of(eps, points=9):
    return [eps * index / (points - 1) for index in range(points - 1)] + [eps]


def search(logits_fn, pixels, labels, norm, eps, attack=ATTACK, **options):
    return smallest_fooling_eps(
        logits_fn, pixels, labels, ThreatModel(norm, eps), epsilons=grid_of(eps), attack=attack, **options
    )


def linear(margins, num_classes=2):
    """A linear model, and images with room on both sides that it puts into class 0 by these margins over class 1."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(768, generator=generator)
    pixels = 0.45 + 0.1 * torch.rand(len(margins), 3, 16, 16, generator=generator)
    excess = pixels.flatten(1) @ weight + torch.tensor(margins)
    pixels = pixels - (excess / weight.square().sum()).view(-1, 1, 1, 1) * weight.view(3, 16, 16)

    def logits_fn(x):
        other = (x.flatten(1) @ weight)[:, None]
        return torch.cat([torch.zeros_like(other), other, torch.full((len(x), num_classes - 2), -1e3)], 1)

    return pixels, weight, logits_fn


@EVERY_NORM
@pytest.mark.parametrize("num_classes", [2, 5], ids=["two classes: no targeted loss", "five classes"])
def test_linear_model_is_fooled_at_its_closed_form_distance(norm, num_classes):
    pixels, weight, logits_fn = linear([0.3, 1.0, 0.6, 0.05], num_classes)
    dual = {"Linf": weight.abs().sum(), "L2": weight.norm(), "L1": weight.abs().max()}[norm].item()
    margins = -logits_fn(pixels)[:, 1].double()
    closest = margins / dual
    attack = replace(ATTACK, steps=20)
    result = search(logits_fn, pixels, torch.zeros(4, dtype=torch.int64), norm, 1.1 / dual, attack)
    assert (result.eps >= closest * (1 - 1e-4)).all()
    # Under L1 the closest point changes a single pixel value, which the search only comes near.
    assert (result.eps <= closest * {"Linf": 1.05, "L2": 1.05, "L1": 2.2}[norm]).all()


@EVERY_NORM
def test_what_is_reported_is_what_the_example_shows(classifier, batch, norm):
    labels = predict(classifier, batch)
    labels[:2] = (labels[:2] + 1) % 4  # misclassified as they are
    result = search(classifier, batch, labels, norm, RADII[norm])
    wrong = predict(classifier, result.adversarial)
    assert torch.equal(result.predictions, wrong)
    assert torch.equal(wrong != labels, result.eps.isfinite())
    assert (result.eps[:2] == 0).all() and (result.eps[2:] > 0).all()
    ball = ThreatModel(norm, RADII[norm]).ball(batch)
    found = result.eps.isfinite()
    assert result.eps.dtype == torch.float64 and found[2:].any()
    assert torch.equal(ball.distance(result.adversarial)[found], result.eps[found])
    order = {"Linf": math.inf, "L2": 2, "L1": 1}[norm]  # whoever checks a stored example in float64 finds it inside
    change = (result.adversarial.double() - batch.double()).flatten(1)
    assert (change.norm(order, dim=1)[found] <= result.eps[found]).all()
    assert (result.eps[found] <= RADII[norm]).all()
    assert torch.equal(result.adversarial[~found], batch[~found])
    assert result.adversarial.min() >= 0 and result.adversarial.max() <= 1


@EVERY_NORM
def test_the_curve_is_nowhere_above_the_one_that_attacks_every_point(classifier, batch, norm):
    labels = predict(classifier, batch)
    labels[0] = (labels[0] + 1) % 4
    threat_model, epsilons = ThreatModel(norm, RADII[norm]), grid_of(RADII[norm])
    on_grid = attack_on_grid(
        classifier, batch, labels, threat_model=threat_model, epsilons=epsilons, attack=ATTACK
    ).smallest_eps
    ours = search(classifier, batch, labels, norm, RADII[norm]).eps
    assert on_grid.isfinite().sum() > 1
    for eps in epsilons:
        assert (ours <= eps).sum() >= (on_grid <= eps).sum()


def test_the_default_grid_is_never_beaten_by_the_grid_attack(classifier, batch):
    labels, eps = predict(classifier, batch), 16 / 255
    epsilons = default_epsilons(eps)
    threat_model = ThreatModel("Linf", eps)
    on_grid = attack_on_grid(classifier, batch, labels, threat_model=threat_model, epsilons=epsilons, attack=ATTACK)
    ours = smallest_fooling_eps(classifier, batch, labels, threat_model, epsilons=epsilons, attack=ATTACK)
    assert (ours.eps <= on_grid.smallest_eps).all()


# Where many images fall between the smallest point of the grid and the largest, and some stand.
BUDGETS = [("Linf", 8 / 255), ("Linf", 32 / 255), ("L2", 0.5), ("L2", 1.5), ("L1", 2.0), ("L1", 6.0)]


@pytest.fixture(scope="module", params=[0.0, 0.1], ids=["undefended", "adversarial"])
def network(request):
    pytest.importorskip("sklearn")
    return trained(request.param, 8)


@pytest.mark.parametrize(("norm", "eps"), BUDGETS)
def test_images_of_trained_networks_are_not_above_the_paper_protocol_and_it_costs_less(network, norm, eps):
    _, _, pixels, labels = digits()
    pixels, labels = pixels[:100], labels[:100]
    epsilons, forwards = default_epsilons(eps, norm), []

    def counting(x):
        forwards.append(len(x) * (3 if x.requires_grad else 1))
        return network(x)

    options = {"epsilons": epsilons, "attack": evaluation_attack(norm=norm)}
    on_grid = attack_on_grid(network, pixels, labels, threat_model=ThreatModel(norm, eps), **options).smallest_eps
    ours = smallest_fooling_eps(counting, pixels, labels, ThreatModel(norm, eps), **options).eps
    # Under L1 ten steps miss so much that what they find at a budget says little about the next.
    assert (ours > on_grid).sum() <= (3 if norm == "L1" else 0)
    naive = len(pixels) * (1 + (len(epsilons) - 1) * (3 * ATTACK.steps + 1))
    assert sum(forwards) <= 0.4 * naive


@EVERY_NORM
def test_images_all_misclassified_cost_one_pass(classifier, batch, norm):
    labels = (predict(classifier, batch) + 1) % 4
    calls = []
    result = search(lambda x: calls.append(x.requires_grad) or classifier(x), batch, labels, norm, RADII[norm])
    assert calls == [True]  # the gradient is the first step of an attack, had there been one
    assert (result.eps == 0).all() and torch.equal(result.adversarial, batch)
    assert torch.equal(result.predictions, predict(classifier, batch))


@EVERY_NORM
@pytest.mark.parametrize("num_classes", [2, 5])
def test_images_that_nothing_fools_are_infinitely_far(norm, num_classes):
    pixels, _, logits_fn = linear([1.0, 2.0], num_classes)

    def confident(x):
        logits = logits_fn(x)
        return torch.cat([logits[:, :1] + 1e5, logits[:, 1:]], 1)

    result = search(confident, pixels, torch.zeros(2, dtype=torch.int64), norm, RADII[norm])
    assert result.eps.tolist() == [math.inf] * 2
    assert torch.equal(result.adversarial, pixels) and result.predictions.tolist() == [0, 0]


@EVERY_NORM
def test_eps_zero_tells_right_from_wrong(classifier, batch, norm):
    labels = predict(classifier, batch)
    labels[3] = (labels[3] + 1) % 4
    result = smallest_fooling_eps(classifier, batch, labels, ThreatModel(norm, 0), epsilons=[0.0], attack=ATTACK)
    assert result.eps.tolist() == [0.0 if index == 3 else math.inf for index in range(12)]
    assert torch.equal(result.adversarial, batch)


@EVERY_NORM
def test_the_gradient_at_the_images_is_taken_once(classifier, batch, norm):
    labels = predict(classifier, batch)
    at_the_images = []

    def watching(x):
        same = (x[:, None] == batch[None]).flatten(2).all(2).any(1)
        at_the_images.append(int(same.sum()) * x.requires_grad)
        return classifier(x)

    result = search(watching, batch, labels, norm, RADII[norm])
    assert result.eps.isfinite().any() and sum(at_the_images) == len(batch)


def test_random_starts_follow_the_generator_alone(classifier, batch):
    labels, attack = predict(classifier, batch), APGD(steps=3, select="fooled")
    before = torch.get_rng_state()
    one, same = (
        search(classifier, batch, labels, "Linf", 0.6, attack, generator=torch.Generator().manual_seed(5)).adversarial
        for _ in range(2)
    )
    assert torch.equal(one, same) and torch.equal(torch.get_rng_state(), before)
