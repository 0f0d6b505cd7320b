import math
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_robust_ft import ThreatModel
from hf_robust_ft.attacks.balls import BALLS, L1Ball, LinfBall

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
        assert torch.allclose(ball.distance(ball.project(x)), torch.tensor(eps).double(), rtol=1e-4)


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
    assert torch.allclose(ball.distance(projected), eps, atol=1e-5)
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


def norm_in_real_arithmetic(change, norm):
    """The norm of one float64 change, rounded once; the L2 norm by its square."""
    values = change.flatten().tolist()
    if norm == "Linf":
        return max(abs(value) for value in values)
    return math.fsum(map(abs, values)) if norm == "L1" else math.sqrt(math.fsum(value * value for value in values))


@EVERY_NORM
@pytest.mark.parametrize("shape", [(40, 1, 2, 2), (40, 3, 8, 8), (8, 3, 32, 32), (2, 3, 224, 224)], ids=str)
def test_distance_is_the_norm_and_never_below_it(norm, shape):
    """Sums in float32 were below it by up to 1e-7 of it in half of the images."""
    generator = torch.Generator().manual_seed(0)
    for size in (1e-6, 0.1, 1.0):
        center = torch.rand(shape, generator=generator)
        x = (center + size * torch.randn(shape, generator=generator)).clamp(0, 1)
        distance = ThreatModel(norm, 1.0).ball(center).distance(x)
        assert distance.shape == shape[:1] and distance.dtype == torch.float64
        change = x.double() - center.double()
        assert (norm_of(change, norm) <= distance).all()
        norms = torch.tensor([norm_in_real_arithmetic(one, norm) for one in change[:4]], dtype=torch.float64)
        assert (norms <= distance[:4]).all() and torch.allclose(norms, distance[:4], rtol=1e-11, atol=0)


@EVERY_NORM
def test_distance_to_the_center_is_zero(norm):
    center = torch.rand(2, 3, 4, 4)
    assert ThreatModel(norm, 1.0).ball(center).distance(center).tolist() == [0.0, 0.0]


def test_distance_is_told_where_a_device_has_no_float64():
    class Mps:  # as much of a tensor on MPS as is asked for
        device = torch.device("mps")

        def __init__(self, values):
            self.values = values

        def to(self, device, dtype):
            assert device == "cpu"
            return self.values.to(dtype)

    ball = ThreatModel("L2", 1.0).ball(torch.zeros(2, 1, 1, 2))
    ball.center = Mps(ball.center)
    assert ball.distance(Mps(torch.full((2, 1, 1, 2), 0.5))).tolist() == pytest.approx([0.5**0.5] * 2)


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


@EVERY_NORM
@pytest.mark.parametrize("per_image", [False, True])
def test_a_scaled_ball_has_a_multiple_of_the_radius(norm, per_image):
    center = torch.rand(2, 3, 4, 4)
    x, eps = center + torch.randn(center.shape), torch.tensor([0.0, 0.07], dtype=torch.float64) if per_image else 0.07
    ball = BALLS[norm](center, eps)
    assert ball.scaled(1) is ball
    assert torch.equal(ball.scaled(3).project(x), BALLS[norm](center, 3 * eps).project(x))


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for the CPU needs a C++ compiler")
def test_a_compiled_projection_stays_inside():
    """A compiled sum over equal values, added up in order, was wrong by 3e-5 of the radius. L1 shares it."""
    center = torch.full((2, 3, 224, 224), 0.5)
    center[1] = 0.3
    eps = torch.tensor([100 / 3, 7.0])

    def project(x):
        return BALLS["L2"](center, eps).project(x)

    x = center + 1 / 3
    for found in (project(x), torch.compile(project, fullgraph=True)(x)):
        assert_inside(found, center, "L2", eps)
        assert torch.allclose(BALLS["L2"](center, eps).distance(found), eps.double(), rtol=1e-4)
