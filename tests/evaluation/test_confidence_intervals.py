"""The intervals cover what they should: of accuracies by the binomial's own sum, of mean shares by simulation."""

import numpy as np
import pytest
from scipy.stats import binom

from hf_robust_ft.evaluation.confidence_intervals import accuracy_interval, interval_method, mean_interval

DRAWS = 2000
GRID = np.arange(9) / 8  # shares of the expected robustness on a grid of nine eps


def on_grid(*chances):
    chances = np.array(chances) / sum(chances)
    return lambda rng, size: rng.choice(GRID, size, p=chances), float(chances @ GRID), 1000


def beta(a, b):
    return lambda rng, size: rng.beta(a, b, size), a / (a + b), 250  # no two alike: slower


# How shares are drawn, their mean, and in how many samples.
SHARES = {
    "both ends and some between": on_grid(60, 2, 2, 2, 2, 2, 2, 2, 26),
    "nearly all fooled at once": on_grid(97, 1, 1, 0, 0, 0, 0, 0, 1),
    "all but a few alike": on_grid(0, 97, 0, 0, 0, 0, 0, 0, 3),
    "towards both ends": beta(0.3, 0.3),
    "nearly all close to 1": beta(1, 0.02),
}


def binomial_coverage(interval, accuracy, count):
    """In how many samples of `count` images the interval of the hits covers the accuracy."""
    hits = np.arange(count + 1)
    low, high = np.transpose([interval(each) for each in hits])
    return binom.pmf(hits, count, accuracy)[(low <= accuracy) & (accuracy <= high)].sum()


@pytest.mark.parametrize("count", [100, 360])
@pytest.mark.parametrize("accuracy", [0.005, 0.05, 0.5, 0.99])
def test_an_accuracys_interval_covers_it_in_95_percent_of_samples(accuracy, count):
    assert binomial_coverage(lambda hits: accuracy_interval(hits, count), accuracy, count) >= 0.95


@pytest.mark.parametrize("count", [100, 360])
@pytest.mark.parametrize("accuracy", [0.005, 0.05, 0.5, 0.99])
def test_the_mean_of_shares_of_0_and_1_is_covered_in_95_percent_of_samples(accuracy, count):
    covered = binomial_coverage(lambda hits: mean_interval(np.arange(count) < hits), accuracy, count)
    assert covered >= 0.95


@pytest.mark.parametrize("count", [100, 360])
@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES)
def test_the_mean_of_other_shares_is_covered_in_95_percent_of_samples(shares, count):
    draw, mean, samples = shares
    rng = np.random.default_rng(0)
    ends = np.array([mean_interval(draw(rng, count), DRAWS) for _ in range(samples)])
    covered = np.mean((ends[:, 0] <= mean) & (mean <= ends[:, 1]))
    assert covered >= 0.95 - 2 * np.sqrt(0.95 * 0.05 / samples)  # what so many samples tell apart


@pytest.mark.parametrize("hits", [0, 1, 3, 50, 99, 100])
def test_the_interval_of_shares_of_0_and_1_is_the_accuracys(hits):
    found, exact = mean_interval(np.arange(100) < hits), accuracy_interval(hits, 100)
    assert found == pytest.approx(exact, abs=0.03 * (exact[1] - exact[0]))


def test_the_interval_of_shares_in_between_is_narrower():
    rng = np.random.default_rng(0)
    spread, ends = rng.uniform(0.3, 0.7, 400), np.arange(400) < 200
    narrow, wide = (high - low for low, high in map(mean_interval, (spread, ends)))
    assert 0.02 < narrow < 0.4 * wide
    assert narrow == pytest.approx(2 * 1.96 * spread.std() / 20, rel=0.25)  # the normal's


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("count", [1, 2, 1000])
def test_equal_shares_have_an_interval_with_a_width(share, count):
    low, high = mean_interval([share] * count)
    assert 0 <= low <= share <= high <= 1 and 1 / count < 500 * (high - low) / 2


def test_reports_of_before_tell_of_a_bootstrap():
    assert interval_method({"level": 0.95, "clean_accuracy": [0.1, 0.2]}) == "bootstrap"
    assert interval_method({"level": 0.95, "method": "Clopper-Pearson"}) == "Clopper-Pearson"
    assert interval_method({}) is None
