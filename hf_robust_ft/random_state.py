"""Work on the side that leaves the global random state as it was, so that what comes after draws the same numbers."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Put Python's, NumPy's, torch's and the current accelerator's random state back after the block.

    An evaluation draws even if it is deterministic: every pass over a `DataLoader` takes a seed for its workers.

    >>> with random_state_kept():
    ...     first = torch.rand(3)
    >>> torch.equal(torch.rand(3), first)
    True
    """
    own, numpys = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(own)
        np.random.set_state(numpys)
