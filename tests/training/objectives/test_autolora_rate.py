"""When AutoLoRA's learning rate is halved, on scripted validation robust accuracies."""

from itertools import accumulate, repeat

import pytest
import torch

from hf_robust_ft.training.objectives.autolora_epochs import halve_rates
from hf_robust_ft.training.objectives.autolora_rate import LEAST_RATE, RULES, halvings

SAWTOOTH = [0.5, *[0.1, 0.2, 0.3, 0.4] * 6]  # in each window three of four epochs rise, and the first is never reached


@pytest.mark.parametrize("rule", RULES[:2])
def test_it_never_halves_what_rises_and_always_what_stands(rule):
    """Checked after the epochs 5, 9, ..., 41; of 0.01, the tenth halving leaves less than training ends at."""
    rising, standing = [0.01 * epoch for epoch in range(41)], [0.3] * 41
    assert halvings(rising, 4, rule) == [False] * 10
    assert halvings(standing, 4, rule) == [True] * 10
    rates = list(accumulate(repeat(0.5, 10), lambda rate, factor: rate * factor, initial=0.01))
    assert rates[9] >= LEAST_RATE > rates[10]


def test_the_authors_halve_again_and_again_and_apgd_every_other_time():
    assert halvings(SAWTOOTH, 4, "authors") == [False, True, True, True, True, True]
    assert halvings(SAWTOOTH, 4, "apgd") == [False, True, False, True, False, True]
    assert halvings(SAWTOOTH, 4, "off") == []


@pytest.mark.parametrize("rises", range(5))
def test_three_of_four_epochs_are_enough(rises):
    falls = 4 - rises
    found = list(accumulate([0.5, *[-0.1] * falls, *[0.2] * rises]))
    assert halvings(found) == [rises < 3]


@pytest.mark.parametrize("window", [1, 2, 4])
def test_a_check_comes_after_each_window_and_earlier_ones_stay_what_they_were(window):
    for epochs in range(1, len(SAWTOOTH) + 1):
        found = halvings(SAWTOOTH[:epochs], window, "apgd")
        assert len(found) == (epochs - 1) // window
        assert found == halvings(SAWTOOTH, window, "apgd")[: len(found)]


def test_halving_outlives_the_scheduler_and_its_checkpoint():
    def made():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)

    optimizer, scheduler = made()
    assert halve_rates(optimizer, scheduler) == 0.005
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.005 and optimizer.param_groups[0]["initial_lr"] == 0.01
    other, resumed = made()
    other.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(scheduler.state_dict())
    other.step()
    resumed.step()
    assert other.param_groups[0]["lr"] == 0.005
