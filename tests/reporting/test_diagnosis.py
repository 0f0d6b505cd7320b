"""Hand-computed delays, severities, correlations, T1 and T2."""

import dataclasses
import math

import numpy as np
import pytest

from hf_robust_ft.provenance.validation_curves import ValidationCurve
from hf_robust_ft.reporting.diagnosis import correlate, diagnose, schedule_epochs

# Readings of the paper's Figure 8, SWIN on Aircraft: the epoch in which a run at k/255 exceeds 5 %.
SWIN_AIRCRAFT = (2, 24, 30, 35, 38, 39, 50, 50, 50, 50)


def curve(name, eps, accuracies, num_epochs=None, **facts):
    epochs = tuple(range(1, len(accuracies) + 1))
    return ValidationCurve(name, eps / 255, epochs, tuple(accuracies), num_epochs or len(accuracies), facts)


@pytest.fixture
def sweep():
    """Ten epochs: standard fine-tuning, a fix run that adapts late, and one that never does."""
    return [
        curve("standard", 0, (0.1, 0.3, 0.5, 0.7, 0.72, 0.74, 0.76, 0.78, 0.79, 0.8)),
        curve("late", 4, (0.01, 0.01, 0.05, 0.051, 0.2, 0.3, 0.35, 0.4, 0.45, 0.5)),
        curve("never", 8, (0.01,) * 9 + (0.05,)),
    ]


def test_delay_is_the_first_epoch_above_the_threshold(sweep):
    assert [each.delay() for each in sweep] == [1, 4, None]  # exactly 5 % does not exceed 5 %
    assert [each.delay(0.4) for each in sweep] == [3, 9, None]
    dipping = curve("dip", 1, (0.0, 0.2, 0.01, 0.3))
    assert dipping.delay() == 2
    assert sweep[0].epoch_of_share() == 5  # 0.9 * 0.8 = 0.72


def test_a_diagnosis_by_hand(sweep):
    found = diagnose(sweep[::-1])
    assert [run.name for run in found.runs] == ["standard", "late", "never"]
    assert [run.delay for run in found.runs] == [1, 4, None] and found.never == [found.runs[2]]
    assert [run.severity for run in found.runs] == pytest.approx([0, 0.3, 0.75])
    # delays 1, 4, 10 and drops 0, 0.3, 0.75, less their means 5 and 0.35:
    expected = (4 * 0.35 + 1 * 0.05 + 5 * 0.4) / math.sqrt((16 + 1 + 25) * (0.35**2 + 0.05**2 + 0.4**2))
    assert found.correlation.value == pytest.approx(expected) and found.correlation.num_points == 3
    # T1: epoch 5; T2: (1 + 4 + 10) / 3 = 5, moved to leave a tenth of training for the ramp.
    assert (found.schedule.start, found.schedule.end, found.schedule.mean_delay) == (5, 6, 5)
    assert found.schedule.shares == (0.5, 0.6)
    assert "1 of 3 runs never adapt" in found.schedule.note and "moved to 6" in found.schedule.note


def test_severity_is_against_the_mean_of_the_standard_runs(sweep):
    found = diagnose([*sweep[1:], sweep[0], curve("standard-1", 0, (0.1,) * 9 + (0.6,))])
    assert [run.severity for run in found.runs] == pytest.approx([-0.1, 0.1, 0.2, 0.65])


def test_the_papers_t1_and_t2():
    def adapting(eps, delay):
        # The paper counts runs that never adapt with 50 epochs.
        reached = {11: 0.9} if eps == 0 else {}
        accuracies, seen = [], 0.01
        for epoch in range(1, 51):
            seen = reached.get(epoch, 0.06 if epoch == delay and delay < 50 else seen)
            accuracies.append(seen)
        return curve(f"fix-{eps}", eps, accuracies)

    found = schedule_epochs([adapting(eps, delay) for eps, delay in enumerate(SWIN_AIRCRAFT)])
    assert found.start == 11 and found.reached == 11  # which the paper rounds to 12
    assert found.mean_delay == pytest.approx(36.8) and found.end == 37
    assert found.shares == (0.22, 0.74)


def test_fix_runs_may_stop_once_they_adapted_but_standard_runs_may_not(sweep):
    standard, late, never = sweep
    stopped = dataclasses.replace(late, epochs=late.epochs[:4], accuracies=late.accuracies[:4])
    assert schedule_epochs([standard, stopped, never]) == schedule_epochs(sweep)
    with pytest.raises(ValueError, match="late was evaluated up to epoch 4 of 10: its final accuracy"):
        diagnose([standard, stopped, never])
    gave_up = dataclasses.replace(never, epochs=never.epochs[:4], accuracies=never.accuracies[:4])
    with pytest.raises(ValueError, match="never was evaluated up to epoch 4 of 10"):
        schedule_epochs([standard, stopped, gave_up])
    early = dataclasses.replace(standard, epochs=standard.epochs[:4], accuracies=standard.accuracies[:4])
    with pytest.raises(ValueError, match="standard was evaluated up to epoch 4 of 10"):
        schedule_epochs([early, late])


def test_correlation_by_hand_and_its_interval():
    found = correlate([1, 2, 3], [1, 2, 4])
    assert found.value == pytest.approx(3 / math.sqrt(2 * 14 / 3))
    straight = correlate([1, 2, 3, 4], [8, 6, 4, 2])
    assert straight.value == pytest.approx(-1) and straight.interval == pytest.approx((-1, -1))
    rng = np.random.default_rng(1)
    x = rng.normal(size=200)
    y = 0.8 * x + 0.6 * rng.normal(size=200)
    noisy = correlate(x, y)
    # Fisher's interval for r = 0.8 and n = 200 is about 0.74 to 0.84.
    assert noisy.interval[0] == pytest.approx(np.tanh(np.arctanh(noisy.value) - 1.96 / math.sqrt(197)), abs=0.03)
    assert noisy.interval[1] == pytest.approx(np.tanh(np.arctanh(noisy.value) + 1.96 / math.sqrt(197)), abs=0.03)
    assert noisy == correlate(x, y)
    assert correlate(x, y, level=0.5).interval[0] > noisy.interval[0]
    assert correlate([3, 3, 3], [1, 2, 3]) is None
    with pytest.raises(ValueError, match="at least 3 points, got 2"):
        correlate([1, 2], [1, 2])


def test_a_diagnosis_that_cannot_tell_the_schedule_says_why(sweep):
    found = diagnose([sweep[0], sweep[2], dataclasses.replace(sweep[2], name="never-1", eps=9 / 255)])
    assert found.schedule is None and "No fix run exceeds the threshold of 5.0% in 10 epochs" in found.no_schedule
    found = diagnose(sweep, threshold=0.85)
    assert found.schedule is None and "standard never exceeds the threshold" in found.no_schedule
    assert found.correlation is None  # every delay counts as 10
    growing = curve("standard", 0, [0.01 * epoch**2 for epoch in range(1, 11)])
    assert "leaves no room" in diagnose([growing, *sweep[1:]]).no_schedule


def test_a_schedule_leaves_an_epoch_at_the_full_eps(sweep):
    """T1 = 9 and T2 = 10 of 10 epochs would, with an eps that changes by epochs, attack nothing at all."""
    late = curve("standard", 0, (0.1,) * 8 + (0.8, 0.8))
    with pytest.raises(ValueError, match="only after 9 of 10 epochs, which leaves no room for a ramp"):
        schedule_epochs([late, *sweep[1:]])
    found = schedule_epochs([curve("standard", 0, (0.1,) * 7 + (0.8,) * 3), *sweep[1:]])
    assert (found.start, found.end) == (8, 9)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([], r"There is no fix run \(eps > 0\) among the runs \(standard\)"),
        ([curve("a", 4, (0.1,) * 12), curve("b", 8, (0.1,) * 10)], "different length.*standard has 10 epochs, a 12"),
        (
            [curve("a", 4, (0.1,) * 10, dataset="cars"), curve("b", 8, (0.1,) * 10, dataset="dogs")],
            "different dataset cannot be mixed in one diagnosis: a has cars, b dogs",
        ),
        (
            [ValidationCurve("a", 0.1, (2, 4, 6, 8, 10), (0.1,) * 5, 10), curve("b", 8, (0.1,) * 10)],
            r"evaluated at different epochs \(1, 2, 3, ... and 2, 4, 6, ...\)",
        ),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(sweep, others, message):
    with pytest.raises(ValueError, match=message):
        diagnose([sweep[0], *others])


def test_bad_curves_and_thresholds_are_refused(sweep):
    with pytest.raises(ValueError, match=r"no standard run \(eps 0\)"):
        diagnose(sweep[1:])
    for threshold in (0, 1, 5):
        with pytest.raises(ValueError, match=r"the paper's 5 % is 0\.05"):
            diagnose(sweep, threshold)
    for epochs, accuracies, message in (
        ((), (), "one accuracy for each epoch"),
        ((1, 2), (0.1,), "got 1 for 2 epochs"),
        ((2, 1), (0.1, 0.1), "must increase"),
        ((1,), (40.0,), r"shares in \[0, 1\]"),
        ((1,), (math.nan,), r"shares in \[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            ValidationCurve("run", 0, epochs, accuracies, 2)
