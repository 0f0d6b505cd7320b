import json

import pytest

from hf_robust_ft.schedules import AutoPlateau, LossDriven


def plateau_after(accuracies, epochs=20, **settings):
    """The alphas of each epoch, when one evaluation follows each."""
    auto, alphas = AutoPlateau(**settings), []
    memory = auto.begin()
    for epoch in range(epochs):
        alphas.append(auto(memory, epoch / epochs))
        memory = auto.observe(memory, accuracies[min(epoch, len(accuracies) - 1)], (epoch + 1) / epochs)
        memory = json.loads(json.dumps(memory))  # as a checkpoint would
    return alphas


def test_the_ramp_begins_where_accuracy_rose_by_less_than_the_tolerance():
    # The best rises by 0.1 up to the 4th evaluation; 5 later, after the 9th, it has risen by 0.01.
    alphas = plateau_after([0.1, 0.2, 0.3, 0.8, 0.81])
    assert alphas[:10] == [0.0] * 10  # epoch 9 is where the ramp begins
    assert alphas[10:] == pytest.approx([(epoch - 9) / 11 for epoch in range(10, 20)])


def test_a_rise_of_the_tolerance_is_no_plateau_and_a_noisy_dip_no_rise():
    rising = [0.02 * epoch / 5 + 1e-9 * epoch for epoch in range(20)]
    assert plateau_after(rising, latest=0.9)[:19] == [0.0] * 19
    dips = [0.5, 0.3, 0.5, 0.1, 0.51, 0.2, 0.4]  # the best is 0.5 at first and 0.51 five later
    assert plateau_after(dips)[6:8] == [0.0, pytest.approx(1 / 14)]


def test_patience_and_tolerance_are_its_own():
    assert plateau_after([0.5], patience=1)[:4] == [0, 0, 0, pytest.approx(1 / 18)]
    assert plateau_after([0.5, 0.55, 0.6], patience=1, tolerance=0.1)[3] > 0


def test_without_a_plateau_the_ramp_begins_at_the_latest():
    alphas = plateau_after([epoch / 20 for epoch in range(20)], latest=0.5)
    assert alphas[:11] == [0.0] * 11 and alphas[15] == pytest.approx(0.5)
    late = plateau_after([epoch / 20 for epoch in range(14)], latest=0.5)  # a plateau after that changes nothing
    assert late == alphas


@pytest.mark.parametrize(
    "bad", [{"patience": 0}, {"patience": 2.5}, {"patience": True}, {"tolerance": 2}, {"latest": 1}]
)
def test_bad_arguments_of_auto_are_refused(bad):
    with pytest.raises(ValueError, match=f"auto needs.*{next(iter(bad))}"):
        AutoPlateau(**bad)


def driven(losses, **settings):
    rule, alphas = LossDriven(**settings), []
    memory = rule.begin()
    for step, loss in enumerate(losses):
        alphas.append(rule(memory, step / len(losses)))
        memory = json.loads(json.dumps(rule.observe(memory, loss, (step + 1) / len(losses))))
    return [*alphas, rule(memory, 1.0)]


def test_alpha_rises_at_its_pace_while_the_loss_is_small_and_stays_otherwise():
    # Of the first loss, 2.0, the share of 0.5 is 1.0.
    assert driven([2.0, 1.0, 1.01, 0.5, 2.0], share=0.5, pace=2.0) == pytest.approx([0, 0, 0.4, 0.4, 0.8, 0.8])
    assert driven([1.0] + [0.1] * 9, pace=4)[-1] == 1.0  # and no further


def test_alpha_falls_only_if_asked_and_not_below_zero():
    losses = [1.0, 0.1, 1.0, 1.0]
    assert driven(losses, pace=2.0, fall=1.0) == pytest.approx([0, 0, 0.5, 0.25, 0.0])


def test_the_mean_of_a_period_decides():
    rule = LossDriven(share=0.5, pace=1.0)
    memory = rule.begin()
    for step, loss in enumerate([1.0, 0.1, 0.1, 0.1]):  # mean 0.325
        assert rule(memory, step / 8) == 0
        memory = rule.observe(memory, loss, (step + 1) / 8, period_ends=step == 3)
    assert rule(memory, 0.5) == 0.5
    for step, loss in enumerate([0.1, 0.1, 0.1, 9.0]):
        memory = rule.observe(memory, loss, (step + 5) / 8, period_ends=step == 3)
    assert rule(memory, 1.0) == 0.5


@pytest.mark.parametrize(
    "bad", [{"share": 0}, {"pace": -1}, {"fall": -1}, {"pace": float("inf")}, {"fall": float("nan")}]
)
def test_bad_arguments_of_loss_driven_are_refused(bad):
    with pytest.raises(ValueError, match="loss_driven needs"):
        LossDriven(**bad)
