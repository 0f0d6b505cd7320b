import doctest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import evaluate
import numpy as np
import pytest
import torch
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
        (["0", "1/255", "nan"], "finite"),
        ([], "non-empty"),
        ("0,1/255", "non-empty list"),
        (0.1, "non-empty list"),
        (["0", "a/255"], "epsilons must be numbers or fractions: 'a/255' is neither a number nor a fraction"),
        (["0", "1/0"], "'1/0' is neither"),
        ([0, None], "None is neither"),
        ([False, True], "False is neither"),
        ([[0, 0.01]], "is neither a number"),
        ([0, 0.01, 0.02], "one prediction per eps"),
    ],
)
def test_bad_grids_are_refused(metric, epsilons, message):
    with pytest.raises(ValueError, match=message):
        metric.compute(predictions=[[0, 1]], references=[0], epsilons=epsilons)


@pytest.mark.parametrize("epsilons", [["0", "1/255", "2/255"], [0, "1/255", 2 / 255], ["0", " 1/255 ", "4/510"]])
def test_epsilons_may_be_fractions(metric, epsilons):
    found = metric.compute(predictions=[[1, 1, 0], [1, 0, 0]], references=[1, 1], epsilons=epsilons)
    assert found["accuracies"] == [1.0, 0.5, 0.0] and found["expected_robustness"] == 0.5


def test_weights_may_be_fractions(metric):
    found = metric.compute(predictions=[[1, 1, 0]], references=[1], epsilons=[0, 1, 2], weights=["1/3"] * 3)
    assert found["expected_robustness"] == pytest.approx(2 / 3, abs=1e-12)


@pytest.mark.parametrize("weights", [[0.5, 0.500009], [0.5, 0.499991], [0.3, 0.7000001]])
def test_the_mean_of_a_constant_is_that_whatever_weights_sum_to(metric, weights):
    options = {"references": [1, 1], "epsilons": [0, 0.1], "weights": weights}
    assert metric.compute(predictions=[[1, 1], [1, 1]], **options)["expected_robustness"] == 1.0
    assert metric.compute(predictions=[[1, 1], [0, 0]], **options)["expected_robustness"] == 0.5


@pytest.mark.parametrize("accuracies", [[90.0, 50.0], [1.1, 0.5], [-0.1, 0.5], [float("nan"), 0.5]])
def test_accuracies_that_are_no_shares_are_refused(accuracies):
    with pytest.raises(ValueError, match=r"shares in \[0, 1\], not percentages"):
        expected_robustness(accuracies, [0, 0.1])


NO_CLASSES = [
    ([[0, 0], [1, 1]], [0, -100], r"references\[1\] = -100 \(1 of 2 are none\). Leave those samples out"),
    ([[0, 0], [1, -100]], [0, 1], r"predictions\[1\]\[1\] = -100 \(1 of 4 are none\). Leave those"),
    ([[0.9, 0.0], [1.0, 1.7]], [0, 1], r"predictions\[0\]\[0\] = 0.9 \(2 of 4 are none\). Of scores or logits"),
    ([[0, 0], [1, 1]], [0.5, 1], r"references\[0\] = 0.5"),
    ([[0, 0], [1, float("nan")]], [0, 1], r"predictions\[1\]\[1\] = nan"),
    ([[0, 0], [1, float("inf")]], [0, 1], r"predictions\[1\]\[1\] = inf"),
    (np.array([[0, -1]]).astype(np.uint64), [0], r"predictions\[0\]\[1\] = 18446744073709551615"),
    ([[0, 1e300]], [0], r"predictions\[0\]\[1\] = 1e\+300"),
    ([[0, 2**70]], [0], r"predictions\[0\]\[1\] = 1180591620717411303424"),
    ([[True, False]], [1], r"predictions\[0\]\[0\] = True"),
    ([["0", "1"]], [0], r"predictions\[0\]\[0\] = '0'"),
    ([[0, None]], [0], r"predictions\[0\]\[1\] = None"),
    ([[0, 0], [1]], [0, 1], r"rows of one length, one prediction per eps; got rows of \[1, 2\]"),
    ([0, [1, 2]], [0, 1], r"got rows of \[0, 2\]"),
    ([[0, {}]], [0], r"predictions\[0\]\[1\] = {} \(1 of 2 are none"),
    ([0, 1], [0, 1], r"predictions must be \(n_samples, n_epsilons\)"),
    ([[[0.1, 0.9], [0.4, 0.6]]], [1], r"predictions must be \(n_samples, n_epsilons\)"),
    ([[0, 0]], [0, 1], r"got \(1, 2\) and \(2,\)"),
    ([], [], "at least one sample"),
]


@pytest.mark.parametrize("way", ["compute", "add_batch"])
@pytest.mark.parametrize(("predictions", "references", "message"), NO_CLASSES)
def test_what_is_no_class_is_refused_not_counted(metric, way, predictions, references, message):
    samples = {"predictions": predictions, "references": references}
    with pytest.raises(ValueError, match=message):
        metric.add_batch(**samples) if way == "add_batch" else metric.compute(**samples, epsilons=[0, 0.1])
    assert len(metric) == 0


@pytest.mark.parametrize(("prediction", "reference"), [([0, 0], -100), ([0, 0.5], 0), ([[0, 0]], 0), ([0, 0], None)])
def test_one_sample_without_a_class_is_refused(metric, prediction, reference):
    with pytest.raises(ValueError, match=r"predictions|references"):
        metric.add(prediction=prediction, reference=reference)
    assert len(metric) == 0


@pytest.mark.parametrize("make", [list, np.array, np.float32, torch.tensor, lambda rows: torch.tensor(rows).float()])
def test_classes_may_be_lists_arrays_tensors_and_whole_floats(metric, make):
    found = metric.compute(predictions=make([[2, 2, 0], [1, 0, 0]]), references=make([2, 1]), epsilons=[0, 0.1, 0.2])
    assert found["accuracies"] == [1.0, 0.5, 0.0]


def test_samples_may_come_in_parts(metric):
    rows, labels, grid = [[1, 1], [1, 0], [0, 0], [1, 1]], [1, 1, 1, 1], [0, 0.1]
    for _ in range(2):  # nothing is left of the first time
        metric.add(prediction=rows[0], reference=labels[0])
        metric.add_batch(predictions=rows[1:3], references=labels[1:3])
        assert len(metric) == 3
        assert metric.compute(predictions=rows[3:], references=labels[3:], epsilons=grid)["accuracies"] == [0.75, 0.5]


def test_what_is_done_to_an_array_after_adding_it_changes_nothing(metric):
    rows, labels = np.array([[1, 1], [1, 0]]), torch.tensor([1, 1])
    metric.add_batch(predictions=rows, references=labels)
    rows[:], labels[:] = 0, 5
    assert metric.compute(epsilons=[0, 0.1])["accuracies"] == [1.0, 0.5]


def test_it_goes_with_evaluates_combine(metric):
    both = evaluate.combine([metric, Robustness(keep_in_memory=True)])
    both.add(prediction=[1, 1], reference=1)
    both.add_batch(predictions=[[1, 0]], references=[1])
    found = both.compute(epsilons=[0, 0.1])
    assert [found[name] for name in found if name.endswith("accuracies")] == [[1.0, 0.5]] * 2


def test_a_refused_grid_forgets_no_samples(metric):
    metric.add_batch(predictions=[[1, 1], [1, 0]], references=[1, 1])
    with pytest.raises(ValueError, match="start at 0"):
        metric.compute(epsilons=[0.1, 0.2])
    assert metric.compute(epsilons=[0, 0.2])["accuracies"] == [1.0, 0.5]
    with pytest.raises(ValueError, match="nothing to score"):
        metric.compute(epsilons=[0, 0.2])


def test_parts_of_other_widths_are_refused(metric):
    metric.add_batch(predictions=[[1, 1]], references=[1])
    metric.add_batch(predictions=[[1, 1, 1]], references=[1])
    with pytest.raises(ValueError, match=r"one prediction per eps: some were added with \[2, 3\]"):
        metric.compute(epsilons=[0, 0.1])


def test_two_processes_score_together_what_each_adds(tmp_path):
    first, second = (
        Robustness(num_process=2, process_id=rank, experiment_id="both", cache_dir=str(tmp_path)) for rank in range(2)
    )
    with ThreadPoolExecutor() as pool:  # each waits for the other's file
        own = pool.submit(first.add_batch, predictions=[[1, 1], [1, 0]], references=[1, 1])
        second.add_batch(predictions=[[0, 0], [1, 0]], references=[1, 1])
        own.result()
    assert second.compute(epsilons=[0, 0.1]) is None
    assert first.compute(epsilons=[0, 0.1])["accuracies"] == [0.75, 0.25]


def test_a_million_samples_are_counted_as_arrays(metric, monkeypatch):
    monkeypatch.setattr(datasets.Features, "encode_batch", None)  # evaluate's way: row by row
    rng = np.random.default_rng(0)
    fails_at, labels = rng.integers(0, 10, 1_000_000), rng.integers(0, 100, 1_000_000)
    predictions = labels[:, None] + (np.arange(9) >= fails_at[:, None])
    found = metric.compute(predictions=predictions, references=labels, epsilons=[eps / 255 for eps in range(9)])
    assert found["accuracies"] == [(fails_at > eps).mean() for eps in range(9)]


@pytest.mark.parametrize("weights", [[0.5, 0.6], [-0.5, 1.5], [1.0], [float("nan"), 1.0], ["a", 1], [0.5, 0.50002]])
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
