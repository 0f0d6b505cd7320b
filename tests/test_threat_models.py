import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_robust_ft import ThreatModel
from hf_robust_ft.threat_models import BALLS, L1Ball, LinfBall, default_epsilons, format_eps, parse_eps

EVERY_NORM = pytest.mark.parametrize("norm", list(BALLS))
SUMMED_NORM = pytest.mark.parametrize("norm", ["L2", "L1"])


def norm_of(change, norm):
    """The norm of (N, ...) changes per image in float64, (N,)."""
    change = change.double().flatten(1)
    if norm == "Linf":
        return change.abs().amax(1)
    return change.abs().sum(1) if norm == "L1" else change.square().sum(1).sqrt()


def assert_inside(x, center, norm, eps):
    eps = torch.as_tensor(eps, dtype=torch.float64)
    assert (norm_of(x.double() - center.double(), norm) <= eps).all()
    assert norm != "Linf" or (norm_of(x - center, norm) <= eps).all()  # also as float32 computes it
    assert x.min() >= 0 and x.max() <= 1 and x.shape == center.shape and x.dtype == torch.float32


def nearest_point(x, center, norm, eps):
    """The nearest point of one ball by bisection in float64: what `project` must find."""
    wanted, center = (x.double() - center.double()), center.double()
    room = torch.where(wanted > 0, 1 - center, center)
    size = wanted.abs()

    def change(amount):  # the larger the amount, the smaller the change
        if norm == "L2":
            return torch.minimum(size / (1 + amount), room)
        return torch.minimum((size - amount).clamp(min=0), room)

    low, high = 0.0, size.max().item() if norm == "L1" else 1e12
    if norm_of(change(0.0)[None], norm).item() <= eps:
        return center + change(0.0) * wanted.sign()
    for _ in range(120):
        middle = (low + high) / 2
        if norm_of(change(middle)[None], norm).item() > eps:
            low = middle
        else:
            high = middle
    return center + change(high) * wanted.sign()


def scattered(generator, sparse, size, shape=(2, 3, 6, 6)):
    """Images with pixels at and near both ends of [0, 1], and points around them, on all or on few of the values."""
    center = torch.rand(shape, generator=generator)
    center[0, 0, 0] = torch.tensor([0.0, 1.0, 1e-9, 1 - 2**-24, 0.5, 1e-40])
    change = size * torch.randn(shape, generator=generator)
    return center, center + (change * (torch.rand(shape, generator=generator) < 0.1) if sparse else change)


sizes = st.sampled_from([1e-4, 0.05, 1.0, 30.0])
radii = st.one_of(st.sampled_from([0.0, 1e-38, 1e-12, 1e-6, 1e4]), st.floats(0, 1), st.floats(1, 200))
seeds = st.integers(0, 2**31)


@pytest.mark.parametrize(
    ("text", "value"), [("4/255", 4 / 255), (0.5, 0.5), ("0.03", 0.03), ("0", 0.0), (0, 0.0), ("0.5/255", 0.5 / 255)]
)
def test_parse_eps(text, value):
    assert parse_eps(text) == value


@pytest.mark.parametrize(
    ("eps", "message"),
    [
        (-0.1, "not negative"),
        ("-4/255", "not negative"),
        (float("nan"), "finite"),
        ("nan", "finite"),
        (float("inf"), "finite"),
        ("4/0", "divides by zero"),
        ("four", "neither a number nor a fraction"),
        ("4/255/2", "neither a number nor a fraction"),
        ("", "neither a number nor a fraction"),
        (None, "NoneType"),
        (True, "bool"),
        ([4], "list"),
    ],
)
def test_bad_eps_is_refused_with_the_value_seen(eps, message):
    with pytest.raises(ValueError, match=message) as error:
        ThreatModel("Linf", eps)
    assert repr(eps) in str(error.value)


@pytest.mark.parametrize("eps", [4, "4", 4.0])
def test_eps_in_255ths_is_the_classic_mistake(eps):
    with pytest.raises(ValueError, match="Did you mean eps='4/255'"):
        ThreatModel("Linf", eps)


def test_unknown_norm_lists_the_valid_ones():
    with pytest.raises(ValueError, match=r"Unknown norm 'L7'\. Valid norms: Linf"):
        ThreatModel("L7", 0.1)


def test_threat_model_is_frozen_equal_and_readable():
    assert ThreatModel("Linf", "4/255") == ThreatModel(eps=4 / 255)
    assert str(ThreatModel("Linf", 8 / 255)) == "Linf 8/255"
    with pytest.raises(AttributeError):
        ThreatModel().eps = 0.1


@given(st.integers(0, 255))
def test_format_eps_reads_back(numerator):
    assert parse_eps(format_eps(numerator / 255)) == numerator / 255


@pytest.mark.parametrize("eps", [1 / 255, 4 / 255, 8 / 255, 16 / 255, 4.5 / 255, 0.0001, 0.031])
def test_default_epsilons_run_from_zero_to_eps_by_255ths(eps):
    grid = default_epsilons(eps)
    assert grid[0] == 0 and grid[-1] == eps
    gaps = np.diff(grid)
    assert (gaps > 0).all() and (gaps <= 1 / 255 + 1e-12).all()
    assert len(grid) == int(np.ceil(eps * 255 - 1e-9)) + 1


def test_projection_loses_next_to_nothing_of_the_budget():
    center = torch.full((1, 3, 2, 2), 0.5)
    ball = LinfBall(center, 8 / 255)
    assert ball.distance(ball.project(torch.ones_like(center))).item() > 8 / 255 - 2e-7


@EVERY_NORM
@settings(max_examples=80, deadline=None)
@given(eps=radii, seed=seeds, sparse=st.booleans(), size=sizes)
def test_projection_and_random_start_stay_in_ball_and_unit_box_exactly(norm, eps, seed, sparse, size):
    generator = torch.Generator().manual_seed(seed)
    center, x = scattered(generator, sparse, size)
    ball = BALLS[norm](center, eps)
    projected = ball.project(x)
    assert_inside(projected, center, norm, eps)
    assert_inside(ball.random_start(generator), center, norm, eps)
    assert torch.equal(ball.project(center), center)
    again = ball.project(projected)
    assert_inside(again, center, norm, eps)
    assert torch.allclose(again, projected, atol=1e-5, rtol=0)


@SUMMED_NORM
@settings(max_examples=60, deadline=None)
@given(eps=radii, seed=seeds, sparse=st.booleans(), size=sizes)
def test_projection_is_the_nearest_point(norm, eps, seed, sparse, size):
    center, x = scattered(torch.Generator().manual_seed(seed), sparse, size)
    projected = ThreatModel(norm, eps).ball(center).project(x)
    for image in range(len(center)):
        nearest = nearest_point(x[image], center[image], norm, eps)
        best, ours = ((x[image].double() - point.double()).norm().item() for point in (nearest, projected[image]))
        # L2 stops after a few rounds, which shows where nearly every pixel is clipped.
        assert ours <= best * (1 + (1e-5 if size < 2 or norm == "L1" else 3e-4)) + 2e-5 * min(1 + eps, 100)


@SUMMED_NORM
def test_projection_uses_the_whole_radius(norm):
    generator = torch.Generator().manual_seed(0)
    center = torch.rand(4, 3, 16, 16, generator=generator)
    x = center + torch.randn(center.shape, generator=generator)
    for eps in (0.5, 5.0, 9.0):
        ball = ThreatModel(norm, eps).ball(center)
        assert torch.allclose(ball.distance(ball.project(x)), torch.tensor(eps), rtol=1e-4)


@EVERY_NORM
def test_a_ball_wider_than_the_box_only_clips(norm):
    center = torch.rand(2, 3, 4, 4)
    x = center + 3 * torch.randn(center.shape)
    eps = {"Linf": 1.0, "L2": 50.0, "L1": 500.0}[norm]
    assert torch.allclose(ThreatModel(norm, eps).ball(center).project(x), x.clamp(0, 1), atol=1e-6)


@EVERY_NORM
def test_large_images_stay_inside(norm):
    """Sums over 150,000 values are where float32 rounding would show."""
    generator = torch.Generator().manual_seed(0)
    center = torch.rand(1, 3, 224, 224, generator=generator)
    for eps, size in ((1.0, 0.001), (1.0, 1.0), (0.01, 1e-6)):
        ball = ThreatModel(norm, eps).ball(center)
        assert_inside(ball.project(center + size * torch.randn(center.shape, generator=generator)), center, norm, eps)
        assert_inside(ball.random_start(generator), center, norm, eps)


@EVERY_NORM
def test_a_ball_takes_one_eps_per_image(norm):
    generator = torch.Generator().manual_seed(1)
    center = 0.3 + 0.4 * torch.rand(4, 3, 4, 4, generator=generator)
    x = center + torch.randn(center.shape, generator=generator)
    eps = torch.tensor([0.0, 4 / 255, 0.1, 0.2], dtype=torch.float64)  # 4/255 rounds up in float32
    ball = ThreatModel(norm, 0.2).ball(center, eps)
    projected = ball.project(x)
    assert_inside(projected, center, norm, eps)
    assert torch.allclose(ball.distance(projected).double(), eps, atol=1e-5)
    assert_inside(ball.random_start(generator), center, norm, eps)
    for index in range(4):
        alone = ThreatModel(norm, 0.2).ball(center[[index]], eps[index].item()).project(x[[index]])
        assert torch.allclose(alone, projected[[index]], atol=1e-7)


@EVERY_NORM
@pytest.mark.parametrize("per_image", [False, True])
def test_rows_are_the_balls_of_those_images(norm, per_image):
    center = torch.rand(4, 3, 4, 4)
    x, index = center + torch.randn(center.shape), torch.tensor([3, 1])
    eps = torch.tensor([0.1, 0.2, 0.3, 0.4]) if per_image else 0.2
    ball = ThreatModel(norm, 0.5).ball(center, eps)
    rows = ball.rows(index)
    assert type(rows) is type(ball) and torch.equal(rows.center, center[index])
    assert torch.equal(rows.project(x[index]), ball.project(x)[index])


@EVERY_NORM
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_ascent_step_has_the_length_asked_for_and_climbs(norm, size):
    center = torch.full((3, 3, 4, 4), 0.5)
    gradient = size * torch.randn(center.shape, generator=torch.Generator().manual_seed(0))
    gradient[2] = 0
    length = torch.tensor([0.01, 0.2, 0.2]).view(-1, 1, 1, 1)
    step = ThreatModel(norm, 0.1).ball(center).ascent_step(center, gradient, length) - center
    assert torch.allclose(norm_of(step, norm), torch.tensor([0.01, 0.2, 0.0]).double(), rtol=1e-4)
    # The steepest ascent: no other change of that length gains more (Hoelder's inequality).
    dual = {"Linf": "L1", "L2": "L2", "L1": "Linf"}[norm]
    gain = (step.double() * gradient.double()).flatten(1).sum(1)
    assert torch.allclose(gain, norm_of(step, norm) * norm_of(gradient, dual), rtol=1e-4)


def test_a_shared_l1_step_moves_the_largest_gradients_evenly():
    center = torch.full((3, 3, 4, 4), 0.5)
    gradient = torch.randn(center.shape, generator=torch.Generator().manual_seed(0))
    length, share = torch.full((3, 1, 1, 1), 0.6), torch.tensor([0.25, 1.0, 0.0])
    step = (L1Ball(center, 1.0).ascent_step(center, gradient, length, share) - center).flatten(1)
    assert (step != 0).sum(1).tolist() == [12, 48, 1]
    assert torch.allclose(step.abs().sum(1), torch.tensor(0.6), rtol=1e-4)
    moved = step[0] != 0
    assert gradient[0].flatten().abs()[moved].min() > gradient[0].flatten().abs()[~moved].max()
    assert torch.equal(step[0][moved].sign(), gradient[0].flatten()[moved].sign())
    assert torch.allclose(step[0][moved].abs(), torch.tensor(0.05), rtol=1e-4)


@EVERY_NORM
def test_distance_is_the_norm(norm):
    center, x = torch.rand(3, 3, 4, 4), torch.rand(3, 3, 4, 4)
    distance = ThreatModel(norm, 1.0).ball(center).distance(x)
    assert distance.shape == (3,) and torch.allclose(distance.double(), norm_of(x - center, norm), rtol=1e-5)


@EVERY_NORM
def test_random_starts_follow_the_generator_and_differ(norm):
    ball = ThreatModel(norm, 0.5).ball(torch.full((2, 3, 4, 4), 0.5))
    one, same, other = (ball.random_start(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other) and not torch.equal(one[0], one[1])
    assert (ball.distance(one) > 0.1).all()


@EVERY_NORM
@pytest.mark.parametrize("per_image", [False, True])
def test_no_method_waits_for_the_device(norm, per_image):
    """A meta tensor has no values: anything that reads one raises."""
    center = torch.empty(2, 3, 4, 4, device="meta")
    ball = ThreatModel(norm, 0.5).ball(center, torch.empty(2, device="meta") if per_image else None)
    length = torch.empty(2, 1, 1, 1, device="meta")
    points = [ball.project(center), ball.random_start(), ball.ascent_step(center, center, length)]
    if norm == "L1":
        points.append(ball.ascent_step(center, center, length, torch.empty(2, device="meta")))
    assert all(point.shape == center.shape and point.device.type == "meta" for point in points)
    assert ball.distance(center).shape == (2,)


@SUMMED_NORM
@pytest.mark.parametrize("eps", [0.5, 2.0, 12.0, 1e-3])
def test_default_epsilons_of_other_norms_are_eight_equal_steps(norm, eps):
    grid = default_epsilons(eps, norm)
    assert len(grid) == 9 and grid[0] == 0 and grid[-1] == eps
    assert np.allclose(np.diff(grid), eps / 8)
    assert default_epsilons(0.0, norm) == [0.0]


@pytest.mark.parametrize(
    ("eps", "text"), [(1.0, "1"), (12.0, "12"), (1.5, "1.5"), (2 + 1 / 255, "2.00392"), (255, "255")]
)
def test_radii_of_1_and_more_are_decimals(eps, text):
    assert format_eps(eps) == text


@SUMMED_NORM
@pytest.mark.parametrize(("eps", "value"), [("12", 12.0), (2, 2.0), ("128/255", 128 / 255), ("510/255", 2.0)])
def test_other_norms_take_radii_above_1(norm, eps, value):
    assert ThreatModel(norm, eps).eps == value
    assert str(ThreatModel(norm, 12)) == f"{norm} 12"
