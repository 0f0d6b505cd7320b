"""Random numbers beside the global random state, so that what comes after draws the same ones."""

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


def key_seed(*key: int) -> int:
    """One seed of a key of whole numbers that are not negative."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


def seeded_generator(device: torch.device, *key: int) -> torch.Generator:
    """A generator of a device, seeded by a key of whole numbers that are not negative."""
    return torch.Generator(device).manual_seed(key_seed(*key))


class KeyedGenerator:
    """A generator that starts anew wherever its key changes: what is drawn depends on the key alone."""

    def __init__(self):
        self._generator: torch.Generator | None = None
        self._key: tuple | None = None

    def at(self, device: torch.device, *key: int) -> torch.Generator:
        """The `seeded_generator`, where device or key are not those of the last call; else that one goes on."""
        if self._key != (device, *key):
            self._generator, self._key = seeded_generator(device, *key), (device, *key)
        return self._generator
