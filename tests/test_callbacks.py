import warnings
from itertools import pairwise
from types import SimpleNamespace

import pytest
from transformers import TrainerControl, TrainerState

from hf_robust_ft import EpsilonSchedulerCallback

EPS = 8 / 255


def run(callback, steps_per_epoch, epochs, start_step=0, accumulation=1):
    """Drive a callback as the Trainer does; return eps at each step."""
    args = SimpleNamespace(gradient_accumulation_steps=accumulation)
    state = TrainerState(max_steps=steps_per_epoch * epochs, global_step=start_step)
    loader = [None] * (steps_per_epoch * accumulation)
    callback.on_train_begin(args, state, TrainerControl(), train_dataloader=loader)
    seen = []
    while state.global_step < state.max_steps:
        callback.on_step_begin(args, state, TrainerControl())
        seen.append(callback.current_eps)
        state.global_step += 1
    return seen


def test_epoch_granularity_is_the_papers_table():
    seen = run(EpsilonSchedulerCallback("8/255"), steps_per_epoch=7, epochs=50)
    per_epoch = [set(seen[7 * epoch : 7 * epoch + 7]) for epoch in range(50)]
    assert all(len(values) == 1 for values in per_epoch)
    alphas = [values.pop() / EPS for values in per_epoch]
    assert alphas[:13] == [0.0] * 13 and alphas[37:] == [1.0] * 13
    assert alphas[24] == pytest.approx(12 / 25) and alphas[13] == pytest.approx(1 / 25)


def test_step_granularity_is_a_fine_ramp_without_a_jump():
    seen = run(EpsilonSchedulerCallback("8/255", granularity="step"), steps_per_epoch=10, epochs=50)
    rises = [later - earlier for earlier, later in pairwise(seen)]
    assert max(rises) <= EPS / 250 * 1.001 and min(rises) >= 0
    assert seen[0] == 0 and seen[-1] == EPS


@pytest.mark.parametrize("granularity", ["epoch", "step"])
@pytest.mark.parametrize("start_step", [1, 30, 61, 99])
def test_resuming_anywhere_continues_the_same_sequence(granularity, start_step):
    whole = run(EpsilonSchedulerCallback("8/255", granularity=granularity), 10, 10)
    rest = run(EpsilonSchedulerCallback("8/255", granularity=granularity), 10, 10, start_step=start_step)
    assert rest == whole[start_step:]


def test_optimizer_steps_are_counted_not_micro_batches():
    plain = run(EpsilonSchedulerCallback("8/255"), 5, 10)
    accumulated = run(EpsilonSchedulerCallback("8/255"), 5, 10, accumulation=4)
    assert plain == accumulated


def test_too_short_a_run_warns_and_says_so_if_no_attack_will_run():
    with pytest.warns(UserWarning, match="reaches only eps=0.0267712 of 8/255"):
        run(EpsilonSchedulerCallback("8/255"), 10, 3)
    with pytest.warns(UserWarning, match=r"no attack will run at all.*schedule_granularity='step'"):
        run(EpsilonSchedulerCallback("8/255"), 10, 1)


def test_a_ramp_to_the_very_end_is_no_reason_to_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen = run(EpsilonSchedulerCallback("8/255", "linear_warmup", end=1.0, granularity="step"), 12, 10)
    assert seen[-1] == pytest.approx(EPS * 119 / 120)


def test_data_without_a_length_needs_step_granularity():
    args, state = SimpleNamespace(gradient_accumulation_steps=1), TrainerState(max_steps=10)
    with pytest.raises(ValueError, match="no length"):
        EpsilonSchedulerCallback("8/255").on_train_begin(args, state, None, train_dataloader=iter([]))
    EpsilonSchedulerCallback("8/255", granularity="step").on_train_begin(args, state, None, train_dataloader=iter([]))


def test_settings_rebuild_the_callback():
    callback = EpsilonSchedulerCallback("8/255", "linear_warmup", 0.0, 0.5, "step")
    again = EpsilonSchedulerCallback.from_state(callback.state())
    assert run(again, 10, 10) == run(callback, 10, 10)


def test_unknown_granularity_is_refused():
    with pytest.raises(ValueError, match=r"'batch'\. Valid: epoch, step"):
        EpsilonSchedulerCallback("8/255", granularity="batch")
