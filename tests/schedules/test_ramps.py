import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_robust_ft.schedules import cosine, exponential, hinge, piecewise_linear, smoothed_hinge

share = st.floats(0, 1)
RAMPS = [hinge, cosine, smoothed_hinge, exponential]


@pytest.mark.parametrize("ramp", RAMPS)
def test_ramps_are_zero_before_start_and_whole_from_end(ramp):
    assert [ramp(t, start=0.25, end=0.75) for t in (0.0, 0.1, 0.25, 0.75, 0.9, 1.0)] == [0, 0, 0, 1, 1, 1]
    assert ramp(0.0, start=0, end=0) == 1.0


@pytest.mark.parametrize("ramp", RAMPS)
@given(start=share, end=share, earlier=share, later=share)
def test_ramps_stay_in_bounds_and_never_fall(ramp, start, end, earlier, later):
    (start, end), (earlier, later) = sorted((start, end)), sorted((earlier, later))
    assert 0 <= ramp(earlier, start=start, end=end) <= ramp(later, start=start, end=end) + 1e-12 <= 1 + 1e-12


def test_cosine_meets_the_hinge_in_the_middle_and_has_no_corner():
    assert cosine(0.5, 0.25, 0.75) == pytest.approx(0.5)
    slopes = [(cosine(t + 1e-6, 0.25, 0.75) - cosine(t, 0.25, 0.75)) / 1e-6 for t in (0.25, 0.75 - 1e-6)]
    assert slopes == pytest.approx([0, 0], abs=1e-4)


@pytest.mark.parametrize(("bend", "power"), [(0.25, 4), (0.5, 2), (1.0, 3)])
def test_smoothed_hinge_is_continuous_in_value_and_slope(bend, power):
    def slope(t):
        return (smoothed_hinge(t + 1e-7, 0, 1, bend, power) - smoothed_hinge(t, 0, 1, bend, power)) / 1e-7

    assert slope(0.0) == pytest.approx(0, abs=1e-5)  # C1 where eps begins to grow
    corner = bend - 1e-9  # where the curve becomes a line
    assert slope(corner - 2e-7) == pytest.approx(slope(min(corner + 2e-7, 1 - 2e-7)), rel=1e-4)
    assert smoothed_hinge(1.0, 0, 1, bend, power) == 1.0


def test_smoothed_hinge_is_auto_lirpas():
    """Its formula for n batches: c s^b up to m = n mid, then a line to 1 at n."""
    n, mid, b = 400, 0.25, 4
    m = int(n * mid)
    c = 1 / (((n - m) * b + m) * m ** (b - 1))
    for s in (1, 50, 100, 101, 250, 399):
        theirs = c * s**b if s < m else c * m**b + (1 - c * m**b) * (s - m) / (n - m)
        assert smoothed_hinge(s / n, 0.0, 1.0) == pytest.approx(theirs, rel=1e-9)
    assert smoothed_hinge(mid, 0, 1) == pytest.approx(1 / 13)  # 7.7 %


@given(share)
def test_without_a_bend_or_a_rate_they_are_the_hinge(progress):
    assert smoothed_hinge(progress, bend=0) == exponential(progress, rate=0) == hinge(progress)


def test_exponential_turns_over_with_the_sign_of_its_rate():
    for t in (0.1, 0.5, 0.8):
        slow, fast = exponential(t, 0, 1, rate=3), exponential(1 - t, 0, 1, rate=-3)
        assert slow < t and slow == pytest.approx(1 - fast)
    assert exponential(0.5, 0, 1, rate=3) == pytest.approx(1 / (1 + math.exp(1.5)))


@given(share)
def test_piecewise_linear_with_two_points_is_the_hinge(progress):
    assert piecewise_linear(progress) == pytest.approx(hinge(progress), abs=1e-12)


def test_piecewise_linear_passes_through_its_points_and_may_fall():
    points = [(0.1, 0.2), (0.3, 0.9), (0.7, 0.4)]
    assert [piecewise_linear(t, points) for t, _ in points] == [alpha for _, alpha in points]
    assert piecewise_linear(0.0, points) == 0.2 and piecewise_linear(1.0, points) == 0.4
    assert piecewise_linear(0.5, points) == piecewise_linear(0.5, "0.1:0.2,0.3:0.9,0.7:0.4") == pytest.approx(0.65)


@pytest.mark.parametrize("points", ["", "0.5", "0:0,0:1", "0.7:0,0.2:1", "0:0,1:1.1", "0:0,nan:1", [], [(0, 1, 2)], 3])
def test_points_that_are_none_are_refused(points):
    with pytest.raises(ValueError, match=r"are not pairs progress:alpha in \[0, 1\]"):
        piecewise_linear(0.5, points)


@pytest.mark.parametrize("bad", [{"bend": 1.1}, {"power": 1.0}, {"power": math.inf}, {"bend": math.nan}])
def test_a_bend_out_of_range_is_refused(bad):
    with pytest.raises(ValueError, match="bend in"):
        smoothed_hinge(0.5, **bad)


@pytest.mark.parametrize("rate", [51, -math.inf, math.nan])
def test_a_rate_out_of_range_is_refused(rate):
    with pytest.raises(ValueError, match="rate in"):
        exponential(0.5, rate=rate)
