import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_robust_ft import SCHEDULES, constant, hinge, linear_warmup
from hf_robust_ft.schedules import build_schedule, parse_schedule_args

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
    for name in ("constant", "linear_warmup", "hinge", "cosine", "smoothed_hinge", "exponential"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            alpha = build_schedule(name, start, end)
        assert 0 <= alpha(earlier) <= alpha(later) + 1e-12 <= 1 + 1e-12
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


def test_the_family_is_complete_and_bounded_and_repeats():
    assert list(SCHEDULES) == [
        "none", "constant", "linear_warmup", "hinge", "cosine", "smoothed_hinge", "piecewise_linear", "exponential",
        "uniform", "beta", "auto", "loss_driven", "per_sample",
    ]  # fmt: skip
    for name in SCHEDULES:
        alphas = [
            [build_schedule(name, arguments={"a": 2, "b": 3} if name == "beta" else {})(t / 9, t) for t in range(10)]
            for _ in range(2)
        ]
        assert all(0 <= alpha <= 1 for alpha in alphas[0]) and alphas[0] == alphas[1], name


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "cosine",
            {"bend": 0.2},
            r"does not take bend\. Its arguments: cosine\(start: float = 0\.24, end: float = 0\.74\)",
        ),
        ("constant", {"end": 0.2}, r"does not take end\. Its arguments: constant\(\)\."),
        ("hinge", {"start": 0.2}, "does not take start.*start is schedule_start, end is schedule_end"),
        ("uniform", {"seed": 3}, r"does not take seed\. Its arguments: uniform\(\)"),
        ("beta", {}, r"'beta' needs a, b\. Its arguments: beta\(a: float, b: float\)\."),
        ("beta", {"a": 1, "b": 0}, r"got a=1, b=0\. Its arguments: beta\(a"),
        ("auto", {"patienc": 3}, r"does not take patienc\. Its arguments: auto\(patience: int = 5, tolerance"),
        ("auto", {"tolerance": "x"}, r"cannot use \{'tolerance': 'x'\}.*Its arguments: auto"),
        ("per_sample", {"levels": 0}, r"levels=0.*Its arguments: per_sample\(levels: int = 20"),
    ],
)
def test_wrong_arguments_show_the_signature(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        build_schedule(name, arguments=arguments)


def test_attack_steps_follow_progress_alone_with_their_own_start_and_end():
    steps = build_schedule("hinge", arguments={"start": 0.5, "end": 0.5}, of="attack steps")  # a jump is no problem
    assert [steps(t) for t in (0.4, 0.6)] == [0, 1]
    with pytest.raises(ValueError, match=r"start=2 must lie in \[0, 1\]"):
        build_schedule("hinge", arguments={"start": 2}, of="attack steps")
    with pytest.raises(ValueError, match="follow progress alone"):
        build_schedule("auto", of="attack steps")
    with pytest.raises(ValueError, match="Unknown attack steps schedule 'hing'"):
        build_schedule("hing", of="attack steps")


def test_sampled_schedules_follow_seed_and_step():
    draws = [build_schedule("uniform", seed=seed)(0.5, step) for seed in (0, 1) for step in (0, 1)]
    assert len(set(draws)) == 4


def test_schedule_arguments_are_read_from_words_or_mappings():
    assert parse_schedule_args({"a": "2", "b": 0.5}) == {"a": 2, "b": 0.5}
    assert parse_schedule_args(["a=1e-2"]) == parse_schedule_args("a=0.01") == {"a": 0.01}
    assert parse_schedule_args(None) == parse_schedule_args(["none"]) == {}


@pytest.mark.parametrize(("words", "message"), [(["a"], "'a'"), (["a="], "'a='"), (["a=1", "a=2"], "given twice")])
def test_words_that_are_no_arguments_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        parse_schedule_args(words)
