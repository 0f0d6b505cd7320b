import pytest
import torch
from torch import nn

from hf_robust_ft import ThreatModel
from hf_robust_ft.attacks import Square

CASES = [("Linf", 0.06), ("L2", 0.6), ("L1", 4.0)]


def model_and_images(count=48, size=8):
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, 32), nn.Tanh(), nn.Linear(32, 5))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
    pixels = torch.rand(count, 3, size, size, generator=generator)
    return model, pixels, model(pixels).argmax(1)


@pytest.mark.parametrize("norm, eps", CASES)
def test_what_it_finds_is_in_the_ball_and_misclassified(norm, eps):
    model, pixels, labels = model_and_images()
    threat_model = ThreatModel(norm, eps)
    found = Square(queries=100)(model, pixels, labels, threat_model)
    assert (threat_model.ball(pixels.double()).distance(found.adversarial.double()) <= eps).all()
    assert found.adversarial.min() >= 0 and found.adversarial.max() <= 1
    assert torch.equal(model(found.adversarial).argmax(1), found.predictions)
    assert torch.equal(found.fooled, found.predictions != labels) and 0 < found.fooled.float().mean() < 1
    assert torch.equal(found.fooled, found.loss > 0)
    more = Square(queries=1000)(model, pixels, labels, threat_model)
    assert more.fooled.sum() > found.fooled.sum()


@pytest.mark.parametrize("norm, eps", CASES)
def test_an_image_fares_the_same_in_any_batch_and_with_the_same_seed(norm, eps):
    model, pixels, labels = model_and_images()
    attack = lambda rows, seed=0: Square(40)(  # noqa: E731
        model, pixels[rows], labels[rows], ThreatModel(norm, eps), generator=torch.Generator().manual_seed(seed)
    )
    state = torch.get_rng_state()
    whole, part = attack(slice(0, 48)), attack(slice(30, 40))
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(whole.adversarial[30:40], part.adversarial)
    assert not torch.equal(whole.adversarial, attack(slice(0, 48), seed=1).adversarial)


def test_queries_are_counted_and_no_gradient_is_asked_for():
    model, pixels, labels = model_and_images(4)
    asked = []

    def spy(x):
        asked.append(len(x))
        assert not x.requires_grad and not torch.is_grad_enabled()
        return model(x)

    result = Square(queries=20)(spy, pixels, labels, ThreatModel("Linf", 1e-6))
    assert asked == [4] * 21 and not result.fooled.any()
    asked.clear()
    wrong = (labels + 1) % 5
    assert Square(queries=20)(spy, pixels, wrong, ThreatModel("Linf", 1e-6)).fooled.all() and asked == [4]
    assert torch.equal(Square(5)(spy, pixels, labels, ThreatModel("Linf", 0)).adversarial, pixels)


@pytest.mark.parametrize("queries", [0, 2.0, True])
def test_bad_numbers_of_queries_are_refused(queries):
    with pytest.raises(ValueError, match=f"queries to be a whole number of at least 1, got {queries!r}"):
        Square(queries=queries)


@pytest.mark.parametrize("norm, eps", CASES[:2])
def test_it_finds_about_as_much_as_the_reference(norm, eps):
    reference = pytest.importorskip("pyautoattack.square").SquareAttack
    model, pixels, labels = model_and_images(200)
    ours = Square(queries=300)(model, pixels, labels, ThreatModel(norm, eps)).fooled.float().mean()
    theirs = reference(model, p_init=0.8, n_queries=300, eps=eps, norm=norm, seed=0, device="cpu")
    with torch.no_grad():
        their_share = (model(theirs.perturb(pixels, labels)).argmax(1) != labels).float().mean()
    assert ours > their_share - 0.05
