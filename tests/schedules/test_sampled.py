from statistics import fmean, pvariance

import pytest

from hf_robust_ft.schedules import beta, uniform

STEPS = range(4000)


def test_uniform_has_its_mean_and_spread_and_ignores_progress():
    drawn = [uniform(0.3, seed=0, step=step) for step in STEPS]
    assert fmean(drawn) == pytest.approx(0.5, abs=0.02) and pvariance(drawn) == pytest.approx(1 / 12, rel=0.05)
    assert 0 <= min(drawn) < 0.01 and 0.99 < max(drawn) <= 1
    assert drawn == [uniform(0.9, seed=0, step=step) for step in STEPS]


def test_seeds_and_steps_draw_unrelated_values():
    assert len({uniform(0, seed=seed, step=step) for seed in range(20) for step in range(20)}) == 400
    pairs = [(uniform(0, seed=1, step=step) - 0.5) * (uniform(0, seed=0, step=step + 1) - 0.5) for step in STEPS]
    assert fmean(pairs) == pytest.approx(0, abs=0.005)


def test_beta_has_its_mean_and_spread():
    drawn = [beta(0, 2.0, 6.0, seed=3, step=step) for step in STEPS]
    assert fmean(drawn) == pytest.approx(0.25, abs=0.01) and pvariance(drawn) == pytest.approx(12 / 576, rel=0.07)


def test_beta_one_one_is_uniform_draw_for_draw():
    assert all(beta(0, 1, 1, seed=5, step=step) == uniform(0, seed=5, step=step) for step in range(50))


@pytest.mark.parametrize(("a", "b"), [(0, 1), (1, -1), (float("nan"), 1), (1, float("inf"))])
def test_bad_parameters_are_refused(a, b):
    with pytest.raises(ValueError, match="a and b above 0"):
        beta(0, a, b, seed=0, step=0)
