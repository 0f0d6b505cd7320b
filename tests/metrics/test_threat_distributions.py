"""Distributions of eps, against scipy.stats and numeric integration."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.integrate import quad

from hf_robust_ft.metrics.robustness.curve import (
    expected_robustness,
    grid_weights,
    survival_expectation,
    trapezoid_weights,
)
from hf_robust_ft.metrics.robustness.threat_distributions import Beta, Dirac, TruncatedNormal, Uniform, Weights

EPS_G = 4 / 255
GRID = np.array([0, 0.5, 1, 2.5, 4]) / 255
CURVE = np.array([0.93, 0.9, 0.6, 0.35, 0.3])


def scipys(distribution):
    """The frozen scipy.stats distribution that `distribution` should be."""
    if isinstance(distribution, Uniform):
        return stats.uniform(scale=distribution.eps_g)
    if isinstance(distribution, Beta):
        return stats.beta(distribution.a, distribution.b, scale=distribution.eps_g)
    mean, std = distribution.mean, distribution.std
    return stats.truncnorm(-mean / std, (distribution.eps_g - mean) / std, loc=mean, scale=std)


CONTINUOUS = [
    Uniform(EPS_G),
    Beta(2, 5, EPS_G),
    Beta(0.5, 0.5, EPS_G),
    Beta(8, 1, EPS_G),
    TruncatedNormal(2 / 255, 1 / 255, EPS_G),
    TruncatedNormal(0, 2 / 255, EPS_G),
    TruncatedNormal(-1 / 255, 1 / 255, EPS_G),
    TruncatedNormal(6 / 255, 1 / 255, EPS_G),
    TruncatedNormal(EPS_G, 0.1 / 255, EPS_G),
]
WEIGHTS = Weights((0, 1.7 / 255, 2.5 / 255, EPS_G), (1, 2, 3, 4), EPS_G)
EVERY = [*CONTINUOUS, Dirac(0, EPS_G), Dirac(1.7 / 255, EPS_G), Dirac(EPS_G, EPS_G), WEIGHTS]

fractions = st.floats(0, 1)
shapes = st.floats(0.05, 50)
distributions = st.one_of(
    st.just(Uniform(EPS_G)),
    st.builds(Beta, shapes, shapes, st.just(EPS_G)),
    st.builds(
        lambda mean, std: TruncatedNormal(mean * EPS_G, std * EPS_G, EPS_G),
        st.floats(-1000, 1000),
        st.floats(1e-9, 100),
    ),
    st.builds(lambda share: Dirac(share * EPS_G, EPS_G), fractions),
    st.dictionaries(st.integers(0, 1000).map(lambda share: share / 1000), st.floats(1e-3, 1e3), min_size=1).map(
        lambda weights: Weights(tuple(share * EPS_G for share in weights), tuple(weights.values()), EPS_G)
    ),
)
grids = st.lists(st.floats(1e-3, 1), min_size=1, max_size=9).map(
    lambda gaps: [0.0, *(np.cumsum(gaps)[:-1] / sum(gaps) * EPS_G), EPS_G]
)


# --- cdf and partial mean ---


@pytest.mark.parametrize("distribution", CONTINUOUS, ids=str)
def test_cdf_and_partial_mean_are_scipys(distribution):
    reference, eps = scipys(distribution), np.linspace(0, EPS_G, 9)
    assert distribution.cdf(eps) == pytest.approx(reference.cdf(eps), abs=1e-10)
    assert distribution.cdf_below(eps) == pytest.approx(reference.cdf(eps), abs=1e-10)
    # E[eps; eps <= x], in the quantile u: eps = ppf(u) for u uniform on [0, cdf(x)], free of density singularities.
    by_quantiles = [quad(reference.ppf, 0, reference.cdf(x), epsabs=1e-13)[0] for x in eps]
    assert distribution.partial_mean(eps) == pytest.approx(by_quantiles, abs=1e-10)


@pytest.mark.parametrize("distribution", EVERY, ids=str)
def test_outside_the_interval_nothing_is_left(distribution):
    below, above = [-np.inf, -1.0, -1e-9], [EPS_G, 1.0, np.inf]
    for function in (distribution.cdf, distribution.cdf_below, distribution.partial_mean):
        assert function(below).tolist() == [0, 0, 0]
    assert distribution.cdf(above) == pytest.approx([1, 1, 1], abs=1e-12)
    assert distribution.cdf_below(np.inf) == pytest.approx(1, abs=1e-12)
    assert distribution.partial_mean(above) == pytest.approx([distribution.partial_mean(EPS_G)] * 3)
    assert distribution.cdf(np.zeros((2, 3))).shape == distribution.partial_mean(np.zeros((2, 3))).shape == (2, 3)


def test_a_jump_counts_at_its_eps_and_not_below():
    dirac = Dirac(0.5, 1.0)
    assert dirac.cdf([0.4, 0.5, 0.6]).tolist() == [0, 1, 1]
    assert dirac.cdf_below([0.4, 0.5, 0.6]).tolist() == [0, 0, 1]
    assert dirac.partial_mean([0.4, 0.5, 0.6]).tolist() == [0, 0.5, 0.5]


@pytest.mark.parametrize(("mean", "std"), [(-10, 0.1), (-999, 0.01), (-999, 100), (-3, 1), (-0.5, 1e-3), (0.3, 100)])
def test_truncated_normal_is_right_far_in_the_tail(mean, std):
    """Against the integral of the density over its value at 0, on the few scales where it is not zero."""

    def density(eps):
        return np.exp(eps * (2 * mean - eps) / (2 * std**2))

    scale = min(1.0, std**2 / abs(mean))
    end = min(1.0, 60 * scale) if mean < 0 else 1.0
    total = quad(density, 0, end, epsabs=0, epsrel=1e-13)[0]
    left, right = TruncatedNormal(mean, std, 1.0), TruncatedNormal(1 - mean, std, 1.0)
    for x in (0.3 * scale, scale, 3 * scale):
        x = min(x, 1.0)
        below = quad(density, 0, x, epsabs=0, epsrel=1e-13)[0] / total
        below_mean = quad(lambda eps: eps * density(eps), 0, x, epsabs=0, epsrel=1e-13)[0] / total
        assert left.cdf(x) == pytest.approx(below, abs=1e-10)
        assert left.partial_mean(x) == pytest.approx(below_mean, abs=1e-10)
        if scale > 1e-6:  # 1 - x must still tell x
            assert 1 - right.cdf(1 - x) == pytest.approx(below, abs=1e-9)
            assert right.partial_mean(1.0) - right.partial_mean(1 - x) == pytest.approx(below - below_mean, abs=1e-9)


@given(distributions)
def test_no_warning_and_monotone(distribution):
    eps = np.linspace(0, EPS_G, 33)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cdf, partial_mean = distribution.cdf(eps), distribution.partial_mean(eps)
    assert (np.diff(cdf) >= -1e-11).all() and (np.diff(partial_mean) >= -1e-11).all()
    assert cdf[-1] == pytest.approx(1) and (partial_mean <= eps * cdf + 1e-11).all()


# --- weights on a grid ---


@pytest.mark.parametrize("distribution", CONTINUOUS, ids=str)
def test_weights_integrate_the_piecewise_linear_curve(distribution):
    reference = scipys(distribution)
    kinks = reference.cdf(GRID[1:-1])
    integral, _ = quad(lambda u: np.interp(reference.ppf(u), GRID, CURVE), 0, 1, points=kinks, epsabs=1e-11, limit=400)
    weights = grid_weights(distribution, GRID)
    assert weights @ CURVE == pytest.approx(integral, abs=1e-9)
    assert expected_robustness(CURVE, GRID, weights) == pytest.approx(integral, abs=1e-9)


@given(distributions, grids)
def test_weights_are_a_distribution_with_the_right_mean(distribution, grid):
    weights = grid_weights(distribution, grid)
    assert weights.shape == (len(grid),) and (weights >= 0).all()
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    # A line is its own interpolation, so the weights keep the mean of eps.
    assert weights @ grid == pytest.approx(distribution.partial_mean(EPS_G), abs=1e-9 * EPS_G)


@given(grids)
def test_uniform_is_the_trapezoid_rule_and_beta_1_1_too(grid):
    assert grid_weights(Uniform(EPS_G), grid) == pytest.approx(trapezoid_weights(grid), abs=1e-10)
    assert grid_weights(Beta(1, 1, EPS_G), grid) == pytest.approx(trapezoid_weights(grid), abs=1e-10)


def test_dirac_picks_one_accuracy():
    assert grid_weights(Dirac(0, EPS_G), GRID).tolist() == [1, 0, 0, 0, 0]
    assert grid_weights(Dirac(EPS_G, EPS_G), GRID).tolist() == [0, 0, 0, 0, 1]
    assert grid_weights(Dirac(GRID[2], EPS_G), GRID).tolist() == [0, 0, 1, 0, 0]
    assert grid_weights(Dirac(1.75 / 255, EPS_G), GRID) == pytest.approx([0, 0, 0.5, 0.5, 0])


def test_weights_are_the_mixture_of_their_diracs():
    smallest = np.array([0, 1, 1.7, 2.5, 3, np.inf]) / 255
    diracs = [Dirac(eps, EPS_G) for eps in WEIGHTS.epsilons]
    for measure in (
        lambda each: grid_weights(each, GRID),
        lambda each: survival_expectation(each, smallest),
        lambda each: each.partial_mean(GRID),
    ):
        mixture = sum(weight * measure(dirac) for weight, dirac in zip([0.1, 0.2, 0.3, 0.4], diracs, strict=True))
        assert measure(WEIGHTS) == pytest.approx(mixture, abs=1e-12)


def test_weights_of_every_grid_point_are_the_integrals_weights():
    given = np.array([5, 0, 2, 1, 2])
    assert grid_weights(Weights(tuple(GRID), tuple(given), EPS_G), GRID) == pytest.approx(given / 10)


def test_a_last_eps_off_by_rounding_keeps_all_mass():
    for last in (np.nextafter(EPS_G, 0), np.nextafter(EPS_G, 1)):
        grid = [*GRID[:-1], last]
        assert grid_weights(Dirac(EPS_G, EPS_G), grid) == pytest.approx([0, 0, 0, 0, 1])
        assert grid_weights(Uniform(EPS_G), grid) == pytest.approx(trapezoid_weights(GRID))
        assert Dirac(last, EPS_G).eps == EPS_G


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([0, 1 / 255, 3 / 255], "end at the distribution's eps_g"),
        ([0, 4 / 255, 5 / 255], "end at the distribution's eps_g"),
        ([0], "end at the distribution's eps_g"),
        ([1 / 255, EPS_G], "must start at 0"),
    ],
)
def test_a_grid_that_is_not_the_distributions_is_refused(grid, message):
    with pytest.raises(ValueError, match=message):
        grid_weights(Beta(2, 5, EPS_G), grid)


# --- expectations from smallest eps ---


@pytest.mark.parametrize("distribution", CONTINUOUS, ids=str)
def test_survival_is_the_mean_of_the_step_curve(distribution):
    smallest = np.array([0, 0.3, 1, 1, 2.2, 3.9, np.inf]) / 255
    reference = scipys(distribution)
    kinks = reference.cdf(smallest[1:-1])
    integral, _ = quad(lambda u: (reference.ppf(u) < smallest).mean(), 0, 1, points=kinks, limit=400)
    assert survival_expectation(distribution, smallest) == pytest.approx(integral, abs=1e-7)


@given(st.lists(st.one_of(st.floats(0, 2 * EPS_G), st.just(float("inf"))), min_size=1))
def test_survival_under_uniform_is_the_mean_share_survived(smallest):
    """The closed form E[min(smallest_eps, eps_g)] / eps_g."""
    expected = np.minimum(smallest, EPS_G).mean() / EPS_G
    assert survival_expectation(Uniform(EPS_G), smallest) == pytest.approx(expected, abs=1e-10)


def test_survival_under_dirac_is_the_accuracy_at_that_eps():
    smallest = [0, 1 / 255, 2 / 255, EPS_G, float("inf")]
    assert survival_expectation(Dirac(0, EPS_G), smallest) == 0.8  # clean accuracy
    assert survival_expectation(Dirac(2 / 255, EPS_G), smallest) == 0.4  # fooled at exactly 2/255 counts as fooled
    assert survival_expectation(Dirac(EPS_G, EPS_G), smallest) == 0.2  # adversarial accuracy


@pytest.mark.parametrize("smallest", [[], [0.1, float("nan")], [-0.1], [[0.1]], 0.1])
def test_bad_smallest_eps_are_refused(smallest):
    with pytest.raises(ValueError, match="smallest_eps"):
        survival_expectation(Uniform(EPS_G), smallest)


# --- more mass on small eps never lowers the value of a decreasing curve ---


@st.composite
def likelier_small_and_large(draw):
    kind = draw(st.sampled_from(["a", "b", "mean", "dirac"]))
    low, high = sorted(draw(st.tuples(shapes, shapes)))
    other = draw(shapes)
    if kind == "a":
        return Beta(low, other, EPS_G), Beta(high, other, EPS_G)
    if kind == "b":
        return Beta(other, high, EPS_G), Beta(other, low, EPS_G)
    if kind == "mean":
        std = draw(st.floats(0.01, 10)) * EPS_G
        low, high = sorted(draw(st.tuples(st.floats(-20, 20), st.floats(-20, 20))))
        return TruncatedNormal(low * EPS_G, std, EPS_G), TruncatedNormal(high * EPS_G, std, EPS_G)
    return Dirac(low / 50 * EPS_G, EPS_G), Dirac(high / 50 * EPS_G, EPS_G)


@given(likelier_small_and_large(), grids, st.data())
def test_more_mass_on_small_eps_never_lowers_a_decreasing_curve(pair, grid, data):
    small, large = pair
    curve = sorted(data.draw(st.lists(fractions, min_size=len(grid), max_size=len(grid))), reverse=True)
    assert grid_weights(small, grid) @ curve >= grid_weights(large, grid) @ curve - 1e-9
    smallest = data.draw(st.lists(fractions.map(lambda share: share * EPS_G), min_size=1, max_size=9))
    assert survival_expectation(small, smallest) >= survival_expectation(large, smallest) - 1e-9
