import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_robust_ft import ThreatModel
from hf_robust_ft.threat_models import LinfBall, default_epsilons, format_eps, parse_eps


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


@settings(max_examples=60, deadline=None)
@given(eps=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_linf_projection_stays_in_ball_and_unit_box_exactly(eps, seed):
    generator = torch.Generator().manual_seed(seed)
    center = torch.rand(2, 3, 4, 4, generator=generator)
    center[0, 0] = torch.tensor([0.0, 1.0, 1e-9, 1 - 2**-24])
    ball = LinfBall(center, eps)
    for x in (
        ball.project(center + 3 * torch.randn(center.shape, generator=generator)),
        ball.random_start(generator),
    ):
        assert (x - center).abs().max().item() <= eps  # as float32 computes it
        assert (x.double() - center.double()).abs().max().item() <= eps  # as it is
        assert x.min() >= 0 and x.max() <= 1
    assert torch.equal(ball.project(center), center)


def test_linf_ball_takes_one_eps_per_image():
    center = torch.full((3, 3, 2, 2), 0.5)
    eps = torch.tensor([0.0, 0.1, 4 / 255], dtype=torch.float64)  # 4/255 rounds up in float32
    ball = LinfBall(center, eps)
    distance = ball.distance(ball.project(torch.ones_like(center))).double()
    assert torch.allclose(distance, eps, atol=1e-6) and (distance <= eps).all()


def test_projection_loses_next_to_nothing_of_the_budget():
    center = torch.full((1, 3, 2, 2), 0.5)
    ball = LinfBall(center, 8 / 255)
    assert ball.distance(ball.project(torch.ones_like(center))).item() > 8 / 255 - 2e-7
