"""Processes that share one piece of work: each learns soon that another failed, and in the end what all found."""

import itertools
import logging
import time
from contextlib import AbstractContextManager, suppress
from typing import Any

import torch.distributed

logger = logging.getLogger(__name__)

PATIENCE = 60.0  # seconds of waiting after which the processes that are waited for are named
LONGEST_PAUSE = 0.5  # seconds between two looks at the others

# Processes number their pieces of work alike, as each takes part in every one of them.
_numbers = itertools.count()


class OtherProcessFailed(RuntimeError):
    """Another process of the group raised; the message says which, and what."""


class SharedWork(AbstractContextManager):
    """What the processes of the default process group (without one, just this process) do together.

    While they work nothing waits for anything, so one may take hours longer than another under any backend (NCCL
    ends a collective that waits for 10 minutes). An exception that leaves the `with` block is made known to the
    others, which raise `OtherProcessFailed` at their next `check_others`, or in `gather`. A process that is killed
    makes nothing known: `torchrun` ends the others then.

    Attributes:
        rank: of this process.
        world_size: number of processes.
    """

    def __init__(self):
        self.rank, self.world_size = 0, 1
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            self.rank, self.world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        if self.world_size > 1:
            from torch.distributed.distributed_c10d import _get_default_store  # not in every build of torch

            prefix = f"hf_robust_ft/shared_work/{next(_numbers)}"
            self._store = torch.distributed.PrefixStore(prefix, _get_default_store())
        self._gatherings = 0

    def check_others(self) -> None:
        """Raise `OtherProcessFailed` if another process has failed by now; does not wait."""
        if self.world_size > 1 and self._store.check(["failure"]):
            raise OtherProcessFailed(self._store.get("failure").decode())

    def gather(self, own: Any) -> list[Any]:
        """Everyone's `own`, by rank, on every process; waits for all to come here, for as long as it takes.

        Args:
            own: anything that can be pickled.

        Raises:
            OtherProcessFailed: another process raised instead of coming here.
        """
        if self.world_size == 1:
            return [own]
        self._wait_for_all()
        # Of its own, since NCCL would carry the bytes over accelerators that the processes may not have to themselves.
        group = torch.distributed.new_group(backend="gloo")
        try:
            parts: list[Any] = [None] * self.world_size
            torch.distributed.all_gather_object(parts, own, group=group)
        finally:
            torch.distributed.destroy_process_group(group)
        return parts

    def _wait_for_all(self) -> None:
        self._gatherings += 1
        key = f"done/{self._gatherings}"
        self._store.set(f"{key}/{self.rank}", "")
        start, pause, told = time.monotonic(), 0.01, False
        waiting = [rank for rank in range(self.world_size) if rank != self.rank]
        while waiting := [rank for rank in waiting if not self._store.check([f"{key}/{rank}"])]:
            self.check_others()
            if not told and time.monotonic() - start > PATIENCE:
                logger.warning(
                    f"Process {self.rank} is done and waits for the processes {waiting}: each of the "
                    f"{self.world_size} must take part."
                )
                told = True
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: Any) -> None:
        if self.world_size == 1 or error is None or isinstance(error, OtherProcessFailed):
            return
        text = f"Process {self.rank} of {self.world_size} failed: {kind.__name__}: {error}"
        with suppress(Exception):  # the store may be what failed; the error itself matters more
            self._store.set("failure", text[:4000])
