import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_robust_ft import ThreatModel
from hf_robust_ft.attacks.threat_model import default_epsilons, format_eps, parse_eps

SUMMED_NORM = pytest.mark.parametrize("norm", ["L2", "L1"])


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


@SUMMED_NORM
@pytest.mark.parametrize("eps", [0.5, 2.0, 12.0, 1e-3])
def test_default_epsilons_of_other_norms_are_eight_equal_steps(norm, eps):
    grid = default_epsilons(eps, norm)
    assert len(grid) == 9 and grid[0] == 0 and grid[-1] == eps
    assert np.allclose(np.diff(grid), eps / 8)
    assert default_epsilons(0.0, norm) == [0.0]


@pytest.mark.parametrize(
    ("eps", "text"), [(1.0, "1"), (12.0, "12"), (1.5, "1.5"), (2 + 1 / 255, "2.00392"), (255, "255")]
)
def test_radii_of_1_and_more_are_decimals(eps, text):
    assert format_eps(eps) == text


@SUMMED_NORM
@pytest.mark.parametrize(("eps", "value"), [("12", 12.0), (2, 2.0), ("128/255", 128 / 255), ("510/255", 2.0)])
def test_other_norms_take_radii_above_1(norm, eps, value):
    assert ThreatModel(norm, eps).eps == value
    assert str(ThreatModel(norm, 12)) == f"{norm} 12"
