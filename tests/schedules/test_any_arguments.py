"""Whatever a schedule is given for arguments: a valid schedule, or a ValueError."""

import warnings

from hypothesis import example, given, settings
from hypothesis import strategies as st

from hf_robust_ft import EpsilonSchedulerCallback
from hf_robust_ft.schedules import SCHEDULES, build_schedule, parse_schedule_args

BOUNDED = settings(derandomize=True, database=None, deadline=None)
PROGRESS = [0.0, 1e-12, 0.1, 0.24, 0.5, 0.74, 0.999999, 1.0]

NAMES = sorted({
    "start", "end", "bend", "power", "points", "rate", "a", "b", "patience", "tolerance", "latest", "share", "pace",
    "fall", "levels", "initial", "seed", "step", "progress", "memory", "self",
})  # fmt: skip
numbers = st.one_of(
    st.integers(-3, 12).map(str),
    st.floats().map(repr),
    st.sampled_from(["1e-320", "1e308", "-0.0", "0.5", "nan", "inf", "1_000", "9" * 400, "9" * 5000, "0.24:0,0.74:1"]),
)
pairs = st.lists(st.tuples(numbers, numbers), max_size=4).map(lambda all_: ",".join(f"{a}:{b}" for a, b in all_))
arguments = st.lists(
    st.builds("{}={}".format, st.sampled_from(NAMES), numbers | pairs | st.text(max_size=5)) | st.text(max_size=8),
    max_size=3,
)


def alphas(schedule):
    """alpha over training: of adaptive and per-sample schedules, with what they may be told on the way."""
    memory = schedule.begin()
    for step, progress in enumerate(PROGRESS):
        yield schedule(progress, step, memory)
        if schedule.observes:
            memory = schedule.rule.observe(memory, (0.0, 0.9, 0.91)[step % 3], progress, step % 2 == 0)
        elif schedule.is_per_sample:
            schedule.rule.record(memory, ["a", "b"], [step % 2 == 0, False])
            yield from schedule.rule.alphas(memory, ["a", "b", "never seen"])


@settings(BOUNDED, max_examples=200)
@given(
    name=st.sampled_from(sorted(SCHEDULES)),
    words=arguments | st.text(max_size=12),
    start=st.floats(-0.1, 1.1) | st.just(0.24),
    end=st.floats(-0.1, 1.1) | st.just(0.74),
)
@example(name="beta", words=["a=1e-320", "b=1e-320"], start=0.24, end=0.74)
@example(name="smoothed_hinge", words=["bend=1", "power=1e308"], start=0.24, end=0.74)
@example(name="piecewise_linear", words=["points=0:0,1e-320:1,1:0.5"], start=0.24, end=0.74)
def test_a_schedule_or_an_error(name, words, start, end):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a ramp without room is allowed, and warned of
        try:
            schedule = build_schedule(name, start, end, parse_schedule_args(words))
        except ValueError as error:
            assert str(error).strip()
            return
    assert all(0 <= alpha <= 1 for alpha in alphas(schedule)), list(alphas(schedule))


@settings(BOUNDED, max_examples=80)
@given(
    name=st.sampled_from([name for name in sorted(SCHEDULES) if name != "beta"]),
    overshoot=st.floats(allow_nan=True) | st.floats(1, 3),
    start=st.floats(0, 1),
    granularity=st.sampled_from(["epoch", "step", "batch"]),
)
def test_no_budget_above_the_overshoot(name, overshoot, start, granularity):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            callback = EpsilonSchedulerCallback("8/255", name, start, 1.0, granularity, overshoot=overshoot)
        except ValueError as error:
            assert str(error).strip()
            return
    callback.steps_per_epoch = 3
    assert all(0 <= callback.eps_at(step, 12) <= callback.peak_eps == 8 / 255 * overshoot for step in range(12))
