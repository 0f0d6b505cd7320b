import json
from itertools import pairwise
from types import SimpleNamespace

import pytest
from transformers import TrainerControl, TrainerState
from transformers.trainer_utils import IntervalStrategy

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


def test_too_short_a_run_warns_and_says_so_if_no_attack_will_run(caplog):
    for eps, steps_per_epoch, epochs in (("8/255", 10, 3), ("8/255", 10, 1), ("4/255", 1, 2)):
        run(EpsilonSchedulerCallback(eps), steps_per_epoch, epochs)
    short, none, tiny = caplog.messages
    assert "reaches only eps=6.83/255 of 8/255" in short
    assert "no attack will run at all" in none and "schedule_granularity='step'" in none
    assert "reaches only eps=2.08/255 of 4/255 in 2 steps" in tiny


def test_a_ramp_to_the_very_end_is_no_reason_to_warn(caplog):
    seen = run(EpsilonSchedulerCallback("8/255", "linear_warmup", end=1.0, granularity="step"), 12, 10)
    assert not caplog.messages
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


def test_sampled_eps_is_drawn_once_an_epoch_or_at_each_step_and_resumes():
    epochs = run(EpsilonSchedulerCallback("8/255", "uniform", seed=3), 5, 4)
    assert len(set(epochs)) == 4 and all(len(set(epochs[5 * k : 5 * k + 5])) == 1 for k in range(4))
    steps = run(EpsilonSchedulerCallback("8/255", "uniform", seed=3, granularity="step"), 5, 4)
    assert len(set(steps)) == 20 and steps[0] == epochs[0] and max(steps) <= EPS
    again = run(EpsilonSchedulerCallback("8/255", "uniform", seed=3, granularity="step"), 5, 4, start_step=7)
    assert again == steps[7:]
    assert run(EpsilonSchedulerCallback("8/255", "uniform", seed=4), 5, 4) != epochs


def test_overshoot_trains_above_the_target():
    callback = EpsilonSchedulerCallback("8/255", "hinge", overshoot=1.1)
    seen = run(callback, 5, 50)
    assert seen[0] == 0 and seen[-1] == pytest.approx(1.1 * EPS) and callback.target_eps == EPS
    with pytest.raises(ValueError, match=r"at least 1, e\.g\. 1\.1; got 0\.9"):
        EpsilonSchedulerCallback("8/255", overshoot=0.9)


def test_attack_steps_have_a_schedule_of_their_own():
    callback = EpsilonSchedulerCallback(
        "8/255", "constant", attack_steps_schedule="linear_warmup", attack_steps_args=["end=0.5"]
    )
    assert set(run(callback, 5, 10)) == {EPS}
    shares = [callback.attack_share_at(step, 50) for step in range(0, 50, 5)]
    assert shares == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1]) and callback.current_attack_share == 1
    drawn = EpsilonSchedulerCallback("8/255", "uniform", granularity="step", attack_steps_schedule="uniform")
    assert all(drawn.eps_at(step, 9) / EPS != pytest.approx(drawn.attack_share_at(step, 9)) for step in range(9))


@pytest.mark.parametrize("schedule", ["hinge", "linear_warmup", "uniform", "none"])
def test_attack_steps_may_follow_eps(schedule):
    callback = EpsilonSchedulerCallback("8/255", schedule, overshoot=1.5, attack_steps_schedule="eps")
    callback.steps_per_epoch = 5
    for step in range(50):
        assert callback.eps_at(step, 50) == pytest.approx(1.5 * EPS * callback.attack_share_at(step, 50))


def test_attack_steps_follow_an_eps_that_follows_what_is_measured():
    callback = EpsilonSchedulerCallback("8/255", "loss_driven", granularity="step", attack_steps_schedule="eps")
    shares = []
    for step in range(20):
        callback.observe(0.0, step + 1, 20)
        shares.append(callback.attack_share_at(step, 20))
        assert callback.eps_at(step, 20) == pytest.approx(EPS * shares[-1])
    assert shares[-1] > shares[0]


def adaptive(callback, accuracies, at=0, remembered=None, steps_per_epoch=3, **settings):
    """Drive an accuracy-driven callback from step `at`; eps of each step, and what checkpoints would keep."""
    args = SimpleNamespace(
        gradient_accumulation_steps=1, eval_strategy=settings.get("eval_strategy", IntervalStrategy.EPOCH), eval_delay=0
    )
    state, control = TrainerState(max_steps=steps_per_epoch * len(accuracies), global_step=at), TrainerControl()
    if remembered is not None:
        state.stateful_callbacks = {"EpsilonSchedulerCallback": remembered}
    callback.on_train_begin(args, state, control, train_dataloader=[None] * steps_per_epoch)
    seen, kept = [], {}
    while state.global_step < state.max_steps:
        callback.on_step_begin(args, state, control)
        seen.append(callback.current_eps)
        state.global_step += 1
        callback.on_step_end(args, state, control)
        if state.global_step % steps_per_epoch == 0:
            accuracy = accuracies[state.global_step // steps_per_epoch - 1]
            callback.on_evaluate(args, state, control, metrics={"eval_clean_accuracy": accuracy})
        kept[state.global_step] = json.loads(json.dumps(callback.state()))
    callback.on_train_end(args, state, control)
    return seen, kept


AUTO = {"schedule": "auto", "schedule_args": {"patience": 2}, "granularity": "step"}
ACCURACIES = [0.2, 0.6, 0.7, 0.705, 0.71, 0.7, 0.7, 0.71, 0.72, 0.7]


@pytest.mark.parametrize("granularity", ["epoch", "step"])
def test_auto_follows_a_scripted_accuracy_and_resumes_anywhere_bitwise(granularity):
    settings = AUTO | {"granularity": granularity}
    whole, kept = adaptive(EpsilonSchedulerCallback("8/255", **settings), ACCURACIES)
    # Best 0.7 after the 3rd evaluation, 0.71 after the 5th: less than 0.02 more.
    assert whole[:15] == [0.0] * 15 and whole[-1] > 0.7 * EPS
    expected = [EPS * (step - 15) / 15 for step in range(15, 30)]
    assert whole[15:] == pytest.approx(expected if granularity == "step" else [expected[k - k % 3] for k in range(15)])
    for at in (1, 14, 15, 16, 22, 29):
        rest, _ = adaptive(EpsilonSchedulerCallback("8/255", **settings), ACCURACIES, at, kept[at])
        assert rest == whole[at:]


def test_only_the_evaluation_of_each_epoch_counts():
    callback = EpsilonSchedulerCallback("8/255", **AUTO)
    adaptive(callback, ACCURACIES)
    memory, state = callback.memory, TrainerState(max_steps=30, global_step=30)
    callback.on_evaluate(None, state, None, metrics={"eval_clean_accuracy": 0.1})  # after training
    assert callback.memory == memory and memory["accuracies"] == ACCURACIES
    callback._is_training = True
    for step in (30, 31, 0):  # again, within an epoch, before training
        state.global_step = step
        callback.on_evaluate(None, state, None, metrics={"eval_clean_accuracy": 0.1})
    state.global_step = 33
    callback.on_evaluate(None, state, None, metrics={"test_clean_accuracy": 0.1})  # another split
    assert callback.memory == memory
    with pytest.raises(ValueError, match="needs one eval_dataset, with labels"):
        callback.on_evaluate(None, state, None, metrics={"eval_loss": 0.1})


def test_auto_without_an_evaluation_each_epoch_is_refused():
    with pytest.raises(ValueError, match="set eval_strategy='epoch'"):
        adaptive(EpsilonSchedulerCallback("8/255", **AUTO), ACCURACIES, eval_strategy=IntervalStrategy.STEPS)


def test_a_checkpoint_without_the_schedules_memory_is_refused():
    _, kept = adaptive(EpsilonSchedulerCallback("8/255", **AUTO), ACCURACIES)
    other = EpsilonSchedulerCallback("8/255", **AUTO | {"schedule_args": {"patience": 3}})
    with pytest.raises(ValueError, match=r"that of another one: .*'patience': 2.*now .*'patience': 3"):
        adaptive(other, ACCURACIES, 6, kept[6])
    with pytest.raises(ValueError, match=r"that of another one: .*'hinge'"):
        hinge = EpsilonSchedulerCallback("8/255").state()
        adaptive(EpsilonSchedulerCallback("8/255", **AUTO), ACCURACIES, 6, hinge)
    with pytest.raises(ValueError, match="that of another one"):
        adaptive(EpsilonSchedulerCallback("8/255", **AUTO), ACCURACIES, 6)
    with pytest.raises(ValueError, match="step 6 was saved before the accuracy"):
        adaptive(EpsilonSchedulerCallback("8/255", **AUTO), ACCURACIES, 6, kept[5])


def test_the_save_of_an_epochs_last_step_waits_for_its_evaluation():
    callback, control = EpsilonSchedulerCallback("8/255", **AUTO), TrainerControl()
    adaptive(callback, ACCURACIES)
    for step, waits in ((4, False), (6, True)):
        control.should_save = True
        callback.on_step_end(None, TrainerState(max_steps=30, global_step=step), control)
        assert control.should_save is not waits
    callback.on_epoch_end(None, TrainerState(max_steps=30, global_step=6), control)
    assert control.should_save
    control.should_save = False
    callback.on_epoch_end(None, TrainerState(max_steps=30, global_step=9), control)
    assert not control.should_save


def test_training_that_ended_far_below_the_target_says_so(caplog):
    adaptive(EpsilonSchedulerCallback("8/255", **AUTO | {"schedule_args": {"latest": 0.97}}), [0.5] * 4)
    assert "'auto' ended at eps=0 of 8/255" in caplog.text and "change schedule_args" in caplog.text


@pytest.mark.parametrize(
    ("callback", "first"),  # optimizer steps of 40 (10 epochs) after which the largest eps has been trained at
    [
        (EpsilonSchedulerCallback("8/255"), 33),  # T2 = 0.74 lies within epoch 8, so epoch 9 is the first at eps_g
        (EpsilonSchedulerCallback("8/255", granularity="step"), 31),
        (EpsilonSchedulerCallback("8/255", "constant"), 1),
        (EpsilonSchedulerCallback("8/255", "linear_warmup", end=1.0, granularity="step"), 40),  # comes to 39/40 of it
        (EpsilonSchedulerCallback("8/255", "uniform"), 1),
    ],
    ids=["hinge", "by step", "constant", "never whole", "drawn"],
)
def test_when_the_largest_eps_of_a_training_is_reached(callback, first):
    run(callback, steps_per_epoch=4, epochs=10)
    reached = [step for step in range(1, 41) if callback.has_peaked(step, 40)]
    assert reached == list(range(first, 41))
    assert callback.trained_eps == pytest.approx(EPS, rel=0.03)


def test_images_with_their_own_eps_have_peaked_with_the_first_of_them():
    callback = EpsilonSchedulerCallback("8/255", "per_sample", schedule_args={"levels": 2}, granularity="step")
    run(callback, steps_per_epoch=4, epochs=1)
    callback.record(["a", "b"], [False, True])
    assert not callback.has_peaked(1, 4)
    callback.record(["a", "b"], [False, True])
    assert callback.has_peaked(2, 4)
