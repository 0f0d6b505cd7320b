"""The processes that load data: they outlive a signal that the whole job gets, and their death is told clearly."""

import re
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader

# As torch words it: "is killed by signal: Killed" or "exited unexpectedly".
DIED = re.compile(r"DataLoader worker \(pid(\(s\))? [\d, ]+\) (is killed|exited unexpectedly)")

# Seconds in which torch's handler of SIGCHLD, which raises once and wherever the program is, has raised.
SETTLING = 0.5


@dataclass(frozen=True)
class IgnoringSignals:
    """A `worker_init_fn` that lets a worker live until its training process ends it.

    Schedulers and terminals signal every process of a job. Without workers, training could not reach the end of its
    step to save; a worker whose training process is gone ends by itself.
    """

    then: Callable[[int], Any] | None

    def __call__(self, worker: int) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        if self.then is not None:
            self.then(worker)


def shield_workers(loader: DataLoader) -> DataLoader:
    """Let the workers that a loader will start ignore SIGTERM and Ctrl-C; the loader itself."""
    if getattr(loader, "num_workers", 0) > 0:
        shielded = IgnoringSignals(loader.worker_init_fn)
        # accelerate starts workers from the loader that it wraps, and copies the outer one to skip batches.
        for each in (loader, getattr(loader, "base_dataloader", loader)):
            each.worker_init_fn = shielded
    return loader


@contextmanager
def explain_worker_death(advice: Callable[[], str]) -> Iterator[None]:
    """Raise a `ChildProcessError` that ends with advice for what the death of a loading process led to."""
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        late = None
        try:
            time.sleep(SETTLING)
        except RuntimeError as other:
            late = other
        told = explain_dead_worker(late or error, advice())
        if told is None:
            raise
        raise told from error


def explain_dead_worker(error: Exception, advice: str) -> ChildProcessError | None:
    """What to raise for an error that a loading process's death led to, else None."""
    if not DIED.search(str(error)) and not _lost_its_worker(error):
        return None
    reason = " ".join(str(error).split("\n")[0].split())
    return ChildProcessError(
        f"A process that loads data died ({reason}). Out of memory or of /dev/shm, most often: lower "
        f"dataloader_num_workers; with 0 an error of the dataset itself shows. {advice}"
    )


def _lost_its_worker(error: Exception) -> bool:
    """Whether the process was gone just when its batch was fetched, which torch passes on as the system tells it."""
    if not isinstance(error, (ConnectionError, EOFError)):
        return False
    fetching = (frame.f_code.co_name == "_try_get_data" for frame, _ in traceback.walk_tb(error.__traceback__))
    return "in pin memory thread" in str(error) or any(fetching)
