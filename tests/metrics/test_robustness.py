import doctest
from pathlib import Path

import evaluate
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hf_robust_ft
from hf_robust_ft.hub.metric_space import LOCAL_NAME
from hf_robust_ft.metrics.robustness.curve import expected_robustness, trapezoid_weights
from hf_robust_ft.metrics.robustness.robustness import Robustness

FOLDER = Path(hf_robust_ft.__file__).parent / "metrics" / "robustness"
QUARTERS = [eps / 255 for eps in range(5)]


@pytest.fixture(params=["evaluate.load", "import"])
def metric(request):
    return evaluate.load(str(FOLDER)) if request.param == "evaluate.load" else Robustness(keep_in_memory=True)


def test_metric_on_the_papers_grid(metric):
    # Ten images; the i-th stays correct up to eps index fails_at[i] - 1.
    fails_at = [0, 1, 2, 3, 4, 5, 5, 5, 5, 5]
    predictions = [[7 if eps < failing else 8 for eps in range(5)] for failing in fails_at]
    result = metric.compute(predictions=predictions, references=[7] * 10, epsilons=QUARTERS)
    assert result == {
        "clean_accuracy": 0.9,
        "adversarial_accuracy": 0.5,
        "expected_robustness": 0.7,
        "accuracies": [0.9, 0.8, 0.7, 0.6, 0.5],
    }


def test_weights_give_another_distribution_of_eps(metric):
    predictions, references = [[1, 1, 0], [1, 0, 0]], [1, 1]
    grid = [0, 0.01, 0.02]
    clean = metric.compute(predictions=predictions, references=references, epsilons=grid, weights=[1, 0, 0])
    worst = metric.compute(predictions=predictions, references=references, epsilons=grid, weights=[0, 0, 1])
    assert clean["expected_robustness"] == clean["clean_accuracy"] == 1.0
    assert worst["expected_robustness"] == worst["adversarial_accuracy"] == 0.0


@pytest.mark.parametrize(
    ("distribution", "expected"),
    [
        ("uniform", 0.7),
        ("dirac:0", 0.9),
        ("dirac:1/255", 0.8),
        ("dirac:4/255", 0.5),
        ("beta:2,1", 0.9 - 0.4 * 2 / 3),  # the curve is a line here: its value at the mean of eps
        ("truncnorm:2/255,1/255", 0.7),
        ("weights:0=1,4/255=3", 0.6),
        ({0: 1, "4/255": 3}, 0.6),
        ({1.5 / 255: 1}, 0.75),
    ],
)
def test_distribution_of_eps_given_as_a_spec(metric, distribution, expected):
    fails_at = [0, 1, 2, 3, 4, 5, 5, 5, 5, 5]
    predictions = [[7 if eps < failing else 8 for eps in range(5)] for failing in fails_at]
    result = metric.compute(predictions=predictions, references=[7] * 10, epsilons=QUARTERS, distribution=distribution)
    assert result["expected_robustness"] == pytest.approx(expected, abs=1e-9)
    assert result["accuracies"] == [0.9, 0.8, 0.7, 0.6, 0.5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [0.5, 0.5], "distribution": "uniform"}, "not both"),
        ({"distribution": "gamma:1,2"}, "truncnorm:MEAN,STD"),
        ({"distribution": "dirac:5/255"}, r"eps in \[0, eps_g\]"),
    ],
)
def test_bad_distributions_are_refused(options, message):
    metric = Robustness(keep_in_memory=True)
    with pytest.raises(ValueError, match=message):
        metric.compute(predictions=[[0, 0]], references=[0], epsilons=[0, 4 / 255], **options)


def test_readme_examples_give_what_they_show():
    text = (FOLDER / "README.md").read_text(encoding="utf-8").replace(LOCAL_NAME, FOLDER.as_posix())
    assert FOLDER.as_posix() in text
    examples = doctest.DocTestParser().get_doctest(text, {}, "README", None, 0)
    assert len(examples.examples) > 8 and doctest.DocTestRunner().run(examples).failed == 0


@pytest.mark.parametrize(
    ("epsilons", "message"),
    [
        ([0.01, 0.02], "must start at 0"),
        ([0, 0.02, 0.01], "must increase strictly"),
        ([0, 0.01, 0.01], "must increase strictly"),
        ([0, float("nan")], "finite"),
        ([], "non-empty"),
        ([0, 0.01, 0.02], "one prediction per eps"),
    ],
)
def test_bad_grids_are_refused(metric, epsilons, message):
    with pytest.raises(ValueError, match=message):
        metric.compute(predictions=[[0, 1]], references=[0], epsilons=epsilons)


@pytest.mark.parametrize("weights", [[0.5, 0.6], [-0.5, 1.5], [1.0]])
def test_weights_that_are_no_distribution_are_refused(weights):
    with pytest.raises(ValueError, match="weights"):
        expected_robustness([1.0, 0.5], [0, 0.1], weights)


increasing = st.lists(st.floats(1e-4, 0.2), min_size=1, max_size=9).map(lambda gaps: [0.0, *np.cumsum(gaps)])


@given(increasing, st.data())
def test_integral_is_numpys_trapezoid_on_any_grid(grid, data):
    accuracies = data.draw(st.lists(st.floats(0, 1), min_size=len(grid), max_size=len(grid)))
    assert expected_robustness(accuracies, grid) == pytest.approx(np.trapezoid(accuracies, grid) / grid[-1])
    assert min(accuracies) - 1e-9 <= expected_robustness(accuracies, grid) <= max(accuracies) + 1e-9


@given(increasing)
def test_trapezoid_weights_are_a_distribution(grid):
    weights = trapezoid_weights(grid)
    assert (weights >= 0).all() and weights.sum() == pytest.approx(1)


def test_a_single_point_is_the_clean_accuracy():
    assert expected_robustness([0.9], [0]) == 0.9
