"""The ways in which a data-loading process's death shows; a real one is in tests/training/base/test_durable.py."""

import pytest

from hf_robust_ft.training.base.worker_faults import explain_dead_worker


def raised(error, function="train"):
    """The error as if raised in a function of that name."""
    names = {"error": error}
    exec(f"def {function}():\n    raise error", names)
    with pytest.raises(type(error)) as caught:
        names[function]()
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DataLoader worker (pid 11) is killed by signal: Killed. "),
        RuntimeError("DataLoader worker (pid(s) 11, 12) exited unexpectedly"),
        RuntimeError("DataLoader worker (pid 11) exited unexpectedly with exit code 1. Details are lost"),
        raised(ConnectionResetError(104, "Connection reset by peer"), "_try_get_data"),
        EOFError("Caught EOFError in pin memory thread for device 0.\nOriginal Traceback:\n ..."),
    ],
    ids=str,
)
def test_a_death_is_told_in_one_line(error):
    told = str(explain_dead_worker(error, "Go on."))
    assert told.startswith("A process that loads data died (") and told.endswith(" Go on.") and "\n" not in told


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Caught RuntimeError in DataLoader worker process 0."),
        raised(ConnectionResetError(104, "Connection reset by peer")),
        OSError("no space"),
    ],
    ids=str,
)
def test_other_errors_are_left_alone(error):
    assert explain_dead_worker(error, "") is None
