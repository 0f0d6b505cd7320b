import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_robust_ft import SCHEDULES, constant, hinge, linear_warmup
from hf_robust_ft.schedules import build_schedule

share = st.floats(0, 1)


def test_hinge_at_the_papers_epochs():
    assert [hinge(epoch / 50, start=12 / 50, end=37 / 50) for epoch in (0, 11, 12, 24.5, 37, 49)] == [
        0.0, 0.0, 0.0, 0.5, 1.0, 1.0,
    ]  # fmt: skip


@given(share)
def test_hinge_with_both_ends_at_zero_is_constant(progress):
    assert hinge(progress, start=0, end=0) == constant(progress) == 1.0


@given(share, share)
def test_hinge_from_zero_is_linear_warmup(progress, end):
    assert hinge(progress, start=0, end=end) == linear_warmup(progress, end=end)


@given(share, share, share, share)
def test_schedules_stay_in_bounds_and_never_fall(start, end, earlier, later):
    start, end = sorted((start, end))
    earlier, later = sorted((earlier, later))
    for name in SCHEDULES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            alpha = build_schedule(name, start, end)
        assert 0 <= alpha(earlier) <= alpha(later) <= 1
        assert alpha(1.0) == 1.0


@given(st.floats(0, 0.9), st.floats(0.05, 1), share)
def test_hinge_is_continuous(start, width, progress):
    end = min(start + width, 1.0)
    slope = 1 / (end - start)
    assert abs(hinge(progress + 1e-6, start, end) - hinge(progress, start, end)) <= 1.1e-6 * slope


def test_unknown_schedule_lists_the_valid_ones():
    with pytest.raises(ValueError, match=r"Unknown eps schedule 'hing'.*constant, linear_warmup, hinge"):
        build_schedule("hing", 0.24, 0.74)


@pytest.mark.parametrize(("start", "end"), [(-0.1, 0.5), (0.2, 1.5), (12, 37), (float("nan"), 0.5)])
def test_shares_outside_the_unit_interval_are_refused(start, end):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        build_schedule("hinge", start, end)


def test_a_ramp_that_ends_before_it_begins_is_refused():
    with pytest.raises(ValueError, match=r"schedule_start=0\.8 is after schedule_end=0\.2"):
        build_schedule("hinge", 0.8, 0.2)


def test_a_jump_warns_and_a_plain_start_does_not():
    with pytest.warns(UserWarning, match="jumps from 0 to its full value"):
        build_schedule("hinge", 0.24, 0.24)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_schedule("hinge", 0, 0)
        build_schedule("hinge", 0.24, 0.74)
