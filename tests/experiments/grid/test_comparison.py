"""Settings are compared on what both have; the paper's own numbers give the paper's own wins."""

import dataclasses

import numpy as np
import pytest
from grid_results import make_result
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from hf_robust_ft.experiments.grid.comparison import (
    Configuration,
    PairedTest,
    ScoreTable,
    Wins,
    count_wins,
    setting_rank,
    t_test_over_configurations,
    t_test_over_seeds,
)
from hf_robust_ft.experiments.grid.settings import schedule_epochs
from hf_robust_ft.experiments.paper.numbers import Scores

DIGITS = Configuration("efficientnet_lite0", "digits", "4/255")

shares = st.integers(0, 360).map(lambda correct: correct / 360)
pairs = st.lists(st.tuples(st.builds(Scores, *[shares] * 3), st.builds(Scores, *[shares] * 3)), max_size=12)


def seeds(clean, setting="fix", **facts):
    """A result for each of the given accuracies."""
    return [make_result(setting=setting, seed=seed, clean=each, **facts) for seed, each in enumerate(clean)]


@pytest.mark.parametrize(
    ("eps", "wins"), [("4/255", (30, 21, 30)), ("8/255", (30, 27, 30))]  # the paper's text says 28, its table 27
)  # fmt: skip
def test_wins_in_the_papers_own_tables(eps, wins):
    table = ScoreTable.from_paper()
    configurations = [each for each in table.configurations if each.eps == eps]
    found = table.paired_means("hinge", "fix", configurations)
    assert tuple(count_wins(found, score).wins for score in Scores._fields) == wins
    assert {count_wins(found, score).pairs for score in Scores._fields} == {30}
    assert not table.missing()


@given(pairs, st.sampled_from(Scores._fields))
def test_swapping_setting_and_reference_swaps_wins(found, score):
    forth = count_wins(found, score)
    back = count_wins([pair[::-1] for pair in found], score)
    assert (back.wins, back.ties, back.losses) == (forth.losses, forth.ties, forth.wins)
    assert forth.pairs == len(found)


def test_equal_means_are_ties_whatever_the_order_of_the_sum():
    table = ScoreTable.from_results([*seeds([0.1, 0.2, 0.3]), *seeds([0.3, 0.1, 0.2], "hinge")])
    assert count_wins(table.paired_means("hinge", "fix"), "clean") == Wins(0, 1, 0)


def test_mean_and_sample_deviation_over_seeds():
    table = ScoreTable.from_results(seeds([0.80, 0.84, 0.88]))
    assert table.mean(DIGITS, "fix").clean == pytest.approx(0.84)
    assert table.deviation(DIGITS, "fix").clean == pytest.approx(0.04)
    assert table.deviation(DIGITS, "fix").adversarial == pytest.approx(0, abs=1e-12)
    assert ScoreTable.from_results(seeds([0.8])).deviation(DIGITS, "fix") is None
    assert table.mean(DIGITS, "hinge") is None and table.by_seed(DIGITS, "hinge") == {}


def test_pairs_are_made_of_the_seeds_that_both_have():
    results = [*seeds([0.5, 0.6, 0.9]), make_result(setting="hinge", seed=1, clean=0.8)]
    table = ScoreTable.from_results([*results, make_result("vit", setting="hinge", clean=0.1)])
    ((ours, theirs),) = table.paired_means("hinge", "fix")
    assert (ours.clean, theirs.clean) == (0.8, 0.6)


@given(st.lists(st.tuples(shares, shares), min_size=2, max_size=8))
def test_t_test_over_seeds_is_that_of_the_differences(values):
    ours, theirs = zip(*values, strict=True)
    table = ScoreTable.from_results([*seeds(ours, "hinge"), *seeds(theirs)])
    found = t_test_over_seeds(table, DIGITS, "hinge", "fix", "clean")
    back = t_test_over_seeds(table, DIGITS, "fix", "hinge", "clean")
    differences = np.subtract(ours, theirs)
    assert found.n == len(values) and found.difference == pytest.approx(differences.mean(), abs=1e-12)
    if np.ptp(differences) < 1e-9:
        assert (found.t, found.p) == (None, None) and "the same difference in every seed" in found.note
    else:
        expected = ttest_1samp(differences, 0)
        assert (found.t, found.p) == pytest.approx((expected.statistic, expected.pvalue)) and not found.note
        assert (back.t, back.p) == pytest.approx((-found.t, found.p))


def test_t_test_over_configurations_takes_means_over_seeds():
    results = []
    for model, clean, better in (("vit", 0.5, 0.1), ("swin", 0.6, 0.2), ("cnx", 0.7, 0.3)):
        results += seeds([clean - 0.1, clean + 0.1], model=model)
        results += seeds([clean + better] * 2, "hinge", model=model)
    table = ScoreTable.from_results(results)
    found = t_test_over_configurations(table, "hinge", "fix", "clean")
    assert found.n == 3 and found.difference == pytest.approx(0.2)
    assert found.t == pytest.approx(0.2 / (0.1 / 3**0.5))
    one = t_test_over_configurations(table, "hinge", "fix", "clean", table.configurations[:1])
    assert one == PairedTest(1, pytest.approx(0.1), note="one configuration: no test")
    assert t_test_over_configurations(table, "uniform", "fix", "clean") == PairedTest(
        0, None, note="no configuration in common"
    )


def test_what_is_missing_and_what_is_there_make_the_whole_grid():
    results = [
        make_result(model, dataset, setting=setting, seed=seed)
        for model in ("vit", "swin")
        for dataset in ("digits", "cub200")
        for setting in ("fix", "hinge")
        for seed in (0, 1)
    ]
    gone = {3, 8, 9, 10, 11}  # one seed of vit/digits/hinge, all of swin/digits
    table = ScoreTable.from_results([each for place, each in enumerate(results) if place not in gone])
    assert table.missing() == {
        (Configuration("vit", "digits", "4/255"), "hinge"): [1],
        (Configuration("swin", "digits", "4/255"), "fix"): [0, 1],
        (Configuration("swin", "digits", "4/255"), "hinge"): [0, 1],
    }


def test_the_ablation_is_expected_only_where_it_was_run():
    results = [*seeds([0.5, 0.6]), *seeds([0.5, 0.6], eps="8/255"), make_result(setting="hinge:12,37")]
    results += [make_result(setting="hinge:12,12"), make_result(setting="hinge:12,12", seed=7)]
    assert ScoreTable.from_results(results).missing() == {(DIGITS, "hinge:12,37"): [7]}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"norm": "L2", "eps": "0.5"},
            r"different norms .* Linf \(e.g. efficientnet_lite0/digits/4/255, fix, seed 0\)",
        ),
        ({"protocol": "exact"}, r"different protocols .* paper, APGD-10 \(ce\) .*; exact, APGD-10 \(ce\) .*folder"),
        ({"attack": {"steps": 40}, "eps": "8/255"}, r"different protocols .*APGD-40"),
        ({"attack": {"restarts": 5}}, r"settings of the attack \(restarts\) .* 1 \(e.g. .* 5 \(e.g."),
        ({"num_samples": 100}, r"different numbers of images of digits .* 360 \(e.g. .*; 100 \(e.g."),
        ({"seed": 0}, r"Two results for efficientnet_lite0/digits/4/255, fix, seed 0"),
        ({"seed": 0, "eps": "0.01568627450980392"}, r"Two results for efficientnet_lite0/digits/4/255, fix, seed 0"),
    ],
)
def test_what_was_not_measured_alike_is_refused(other, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        ScoreTable.from_results([make_result(), make_result(**{"seed": 1, **other})])


def test_other_points_of_eps_are_refused_though_their_number_is_the_same():
    one, other = make_result(), make_result(seed=1)
    report = dataclasses.replace(other.report, epsilons=[0.0, 0.001, 0.002, 0.003, 4 / 255])
    with pytest.raises(ValueError, match="different epsilons up to 4/255"):
        ScoreTable.from_results([one, dataclasses.replace(other, report=report)])


def test_eps_and_datasets_may_differ_in_points_and_images():
    results = [make_result(), make_result(eps="8/255"), make_result(dataset="cub200", num_samples=5794)]
    assert len(ScoreTable.from_results(results).configurations) == 3


def test_settings_are_told_apart_and_ordered():
    assert schedule_epochs("hinge:0,12.5") == (0, 12.5)
    assert [schedule_epochs(each) for each in ("hinge", "hinge:1", "hinge:a,b", "hinge_fast")] == [None] * 4
    mixed = ["auto:patience=2", "auto", "hinge:12,30", "zeta", "hinge", "hinge:5,50", "fix", "alpha", "standard"]
    assert sorted(mixed, key=setting_rank) == [
        "standard", "fix", "auto", "auto:patience=2", "hinge", "alpha", "zeta", "hinge:5,50", "hinge:12,30",
    ]  # fmt: skip
