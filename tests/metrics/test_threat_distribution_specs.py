"""How a distribution of eps is written, shown and refused."""

import numpy as np
import pytest

from hf_robust_ft.attacks.threat_model import parse_eps
from hf_robust_ft.metrics.robustness.threat_distribution_specs import distribution_spec, parse_distribution
from hf_robust_ft.metrics.robustness.threat_distributions import Beta, Dirac, TruncatedNormal, Uniform, Weights

EPS_G = 4 / 255


@pytest.mark.parametrize(
    ("spec", "distribution", "shown"),
    [
        ("uniform", Uniform(EPS_G), "uniform on [0, 4/255]"),
        ("beta:2,5", Beta(2, 5, EPS_G), "beta(2, 5) on [0, 4/255]"),
        (
            "truncnorm:2/255, 0.003",
            TruncatedNormal(2 / 255, 0.003, EPS_G),
            "normal(mean 2/255, std 0.003) truncated to [0, 4/255]",
        ),
        ("truncnorm:-1/255,1/255", TruncatedNormal(-1 / 255, 1 / 255, EPS_G), None),
        ("dirac:1/255", Dirac(1 / 255, EPS_G), "always 1/255"),
        ("dirac:0", Dirac(0, EPS_G), "always 0"),
        ("weights:0=1,2/255=3", Weights((0, 2 / 255), (0.25, 0.75), EPS_G), "0.25 at 0, 0.75 at 2/255"),
        ("weights: 2/255 = 1/2 , 0 = 0.5", Weights((0, 2 / 255), (1, 1), EPS_G), "0.5 at 0, 0.5 at 2/255"),
        ({0: 1, "2/255": 3}, Weights((0, 2 / 255), (0.25, 0.75), EPS_G), None),
        ({0.003: 2}, Weights((0.003,), (1,), EPS_G), "1 at 0.003"),
    ],
)
def test_specs_are_read(spec, distribution, shown):
    assert parse_distribution(spec, EPS_G) == distribution
    assert shown is None or str(distribution) == shown


@pytest.mark.parametrize(
    ("mapping", "name"),
    [
        ({0: 1, 2 / 255: 3}, "weights:0=1,2/255=3"),
        ({"4/255": "1/3", 0.003: 0.1}, "weights:4/255=1/3,0.003=0.1"),
        ({np.float32(0.001): np.int64(2)}, "weights:0.0010000000474974513=2"),
        ({1 / 255 + 1e-17: 1, 0.01: 1e-9}, None),
    ],
)
def test_a_mappings_name_reads_back_as_the_same_distribution(mapping, name):
    assert name is None or distribution_spec(mapping) == name
    assert parse_distribution(distribution_spec(mapping), EPS_G) == parse_distribution(mapping, EPS_G)
    read = lambda value: parse_eps(value if isinstance(value, str) else float(value))  # noqa: E731
    numbers = {read(eps): read(weight) for eps, weight in mapping.items()}
    assert parse_distribution(mapping, EPS_G) == Weights(tuple(numbers), tuple(numbers.values()), EPS_G)


@pytest.mark.parametrize(
    "spec", ["weights", "weights:", "weights:1", "weights:0=1,", "weights:0=1=2", "weights:0:1", {}, [(0, 1)]]
)
def test_weights_without_their_eps_are_no_distribution(spec):
    with pytest.raises(ValueError, match=r"weights:EPS=WEIGHT,\.\.\. or {EPS: WEIGHT, \.\.\.}"):
        parse_distribution(spec, EPS_G)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("weights:5/255=1", r"in \[0, eps_g\]"),
        ("weights:-1/255=1", r"in \[0, eps_g\]"),
        ("weights:1/255=1,1/255=2", "each eps once"),
        ({"1/255": 1, 1 / 255: 2}, "each eps once"),
        ("weights:nan=1", r"in \[0, eps_g\]"),
        ("weights:0=-1,1/255=2", "not negative"),
        ("weights:0=0", "not all 0"),
        ("weights:0=inf", "must be finite"),
        ({0: float("nan")}, "must be finite"),
        ("weights:0=a", "In the distribution 'weights:0=a', 'a' is neither"),
        ({None: 1}, "In weights of eps, None is neither"),
        ({0: [1]}, "is neither"),
    ],
)
def test_bad_weights_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        parse_distribution(spec, EPS_G)


@pytest.mark.parametrize("spec", ["gamma:1,2", "", "Beta:2,5", "uniform:1", "uniform:", "beta", "beta:2", "beta:1,2,3"])
def test_specs_that_are_none_list_the_valid_ones(spec):
    with pytest.raises(ValueError, match="Valid: uniform; beta:A,B; truncnorm:MEAN,STD; dirac:EPS") as error:
        parse_distribution(spec, EPS_G)
    assert repr(spec) in str(error.value)


@pytest.mark.parametrize("spec", [None, 3, Uniform(EPS_G)])
def test_specs_must_be_strings(spec):
    with pytest.raises(ValueError, match="Valid: uniform"):
        parse_distribution(spec, EPS_G)


@pytest.mark.parametrize("number", ["x", "", "1/0", "1/2/3", "/255", "1/"])
def test_numbers_that_are_none_are_named(number):
    with pytest.raises(ValueError, match="neither a number nor a fraction") as error:
        parse_distribution(f"dirac:{number}", EPS_G)
    assert repr(number) in str(error.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Uniform(0), "eps_g above 0"),
        (lambda: Uniform(-0.1), "eps_g above 0"),
        (lambda: Uniform(float("inf")), "eps_g to be a finite number"),
        (lambda: Uniform("4/255"), "eps_g to be a finite number"),
        (lambda: Uniform(True), "eps_g to be a finite number"),
        (lambda: Beta(0, 1, 1.0), "a and b above 0"),
        (lambda: Beta(1, -2, 1.0), "a and b above 0"),
        (lambda: Beta(1, 1e308, 1.0), "at most 1e300"),
        (lambda: Beta(float("nan"), 1, 1.0), "a to be a finite number"),
        (lambda: TruncatedNormal(0.5, 0, 1.0), "std above 0"),
        (lambda: TruncatedNormal(0.5, -1, 1.0), "std above 0"),
        (lambda: TruncatedNormal(float("inf"), 1, 1.0), "mean to be a finite number"),
        (lambda: TruncatedNormal(0.5, 101, 1.0), "uniform for a wider one"),
        (lambda: TruncatedNormal(0.5, 1e-10, 1.0), "dirac for a narrower one"),
        (lambda: TruncatedNormal(-1001, 1, 1.0), "mean within"),
        (lambda: Weights((0, 0.1), (1,), 1.0), "a weight for each eps"),
        (lambda: Weights((), (), 1.0), "a weight for each eps"),
        (lambda: Weights((0,), (1,), 0), "eps_g above 0"),
        (lambda: Dirac(-0.1, 1.0), r"in \[0, eps_g\] = \[0, 1\], got -0.1"),
        (lambda: Dirac(1.1, 1.0), r"in \[0, eps_g\] = \[0, 1\], got 1.1"),
        (lambda: parse_distribution("beta:0,1", EPS_G), "a and b above 0"),
        (lambda: parse_distribution("truncnorm:nan,1/255", EPS_G), "mean to be a finite number"),
    ],
)
def test_bad_parameters_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
