"""How much memory tensors take at their peak, counted by storage: the same on any device, "meta" included."""

import weakref

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make while it is entered, as long as anything holds them.

    What existed before, a model's weights for instance, does not count, nor what a kernel needs for itself.

    >>> with LiveTensors() as live:
    ...     for _ in range(3):
    ...         x = torch.ones(1000, device="meta") + 1
    >>> live.peak  # the sum, its operand, and for a moment the sum before
    12000

    Attributes:
        now: bytes alive.
        peak: the most there were.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._seen = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {each.untyped_storage() for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, Tensor) and each.untyped_storage() not in given:
                self._enter(each.untyped_storage())
        return made

    def _enter(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._leave, size)

    def _leave(self, size: int) -> None:
        self.now -= size
