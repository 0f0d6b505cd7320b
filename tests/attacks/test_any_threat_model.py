"""Whatever stands for norm and eps: a ball of finite radius, or a ValueError."""

import math
from fractions import Fraction

import numpy as np
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hf_robust_ft import ThreatModel
from hf_robust_ft.attacks.balls import BALLS
from hf_robust_ft.attacks.threat_model import format_eps, parse_eps
from hf_robust_ft.evaluation.protocols import resolve_epsilons

BOUNDED = settings(derandomize=True, database=None, deadline=None)

numbers = st.one_of(
    st.integers(-2, 300), st.integers(), st.floats(), st.fractions(), st.booleans(), st.none(), st.complex_numbers(),
    st.floats().map(np.float32), st.integers(-9, 9).map(np.int64), st.decimals(), st.floats(0, 1).map(torch.tensor),
)  # fmt: skip
texts = st.one_of(
    st.text(max_size=10),
    st.text(alphabet="0123456789./-+eE _i\u0131naf", max_size=10),
    st.tuples(st.integers(0, 300), st.integers(0, 300)).map(lambda pair: f"{pair[0]}/{pair[1]}"),
    st.sampled_from(
        ["٤/255", "4\uff0f255", "1e-400/1", "1/1e-320", "1e308/1e-308", "9" * 400, "4/255/1", "/", "8 / 255"]
    ),
)


@settings(BOUNDED, max_examples=200)
@given(norm=st.sampled_from([*BALLS, "linf", "L∞", "", None, 2, ["L2"]]), eps=numbers | texts)
@example(norm="L2", eps=10**400)
@example(norm="Linf", eps=Fraction(10**400, 3))
def test_a_ball_or_an_error(norm, eps):
    try:
        threat_model = ThreatModel(norm, eps)
    except ValueError as error:
        assert str(error).strip()
        return
    assert type(threat_model.eps) is float and math.isfinite(threat_model.eps) and threat_model.eps >= 0
    assert norm != "Linf" or threat_model.eps <= 1
    center = torch.full((1, 1, 2, 2), 0.25)
    ball = threat_model.ball(center)
    moved = ball.project(center + 1)
    assert ball.distance(moved).item() <= threat_model.eps * (1 + 1e-6) and 0 <= moved.min() <= moved.max() <= 1


@settings(BOUNDED, max_examples=100)
@given(eps=st.floats(0, 1) | st.fractions(0, 1).map(float))
def test_what_is_written_reads_back_as_the_same_radius(eps):
    assert math.isclose(parse_eps(format_eps(eps)), eps, rel_tol=1e-5, abs_tol=1e-9)


@settings(BOUNDED, max_examples=100)
@given(numerator=st.integers(0, 255), denominator=st.integers(1, 10**6))
def test_a_fraction_is_what_it_says(numerator, denominator):
    assert parse_eps(f"{numerator}/{denominator}") == float(Fraction(numerator, denominator))


@settings(BOUNDED, max_examples=100)
@given(epsilons=st.lists(numbers | texts, max_size=4) | texts | st.none(), eps=st.sampled_from(["4/255", "0", 1]))
def test_a_grid_or_an_error(epsilons, eps):
    threat_model = ThreatModel("Linf", eps)
    try:
        grid = resolve_epsilons(epsilons, threat_model)
    except ValueError as error:
        assert str(error).strip()
        return
    assert grid[0] == 0 and grid == sorted(set(grid)) and math.isclose(grid[-1], threat_model.eps, abs_tol=1e-9)
