"""SIGTERM, which schedulers send before they take a machine away: training saves a checkpoint and ends.

Not by transformers' `enable_jit_checkpoint`: there each process decides by its own clock, so several wait for each
other for ever; it saves in the middle of an accumulated step, from where a resumed run differs; with
`save_total_limit=1` the end of training may delete what it saved; and the script goes on as if training were done.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

EXIT_CODE = 128 + signal.SIGTERM


class Terminated(SystemExit):
    """Training was stopped by SIGTERM, after it saved a checkpoint; uncaught, the process ends with exit code 143.

    143 is what shells and schedulers take for "ended by SIGTERM": with 0, jobs that wait for this one would start on an
    unfinished model.
    """

    def __init__(self, message: str):
        super().__init__(EXIT_CODE)
        self.message = message

    def __str__(self) -> str:
        return self.message


class TerminationCallback(TrainerCallback):
    """Asks for a checkpoint once SIGTERM came to this process or, of several, to any.

    It saves after the optimizer step at hand, and after the evaluation of an epoch that ends with it. Several processes
    agree by a number that each sends after every step and reads after the next, over a gloo group of its own: nothing
    waits for an accelerator, and all stop after the same step.

    Attributes:
        ends_now: whether training is to end once what it has asked for is saved, on all processes alike.
    """

    def __init__(self):
        self.ends_now = self._is_due = False
        self._came = False
        self._group: Any = None
        self._sent: tuple[Any, torch.Tensor] | None = None

    @contextmanager
    def listening(self, timeout: timedelta) -> Iterator[None]:
        """Take SIGTERM for a while; a handler that someone else has installed stays.

        Args:
            timeout: after which processes that do not answer end in an error, here and in training's own collectives:
                whoever began the process group (a `PartialState()` anywhere before) may not have known it.
        """
        self.ends_now = self._is_due = self._came = False
        takes = threading.current_thread() is threading.main_thread()
        takes = takes and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.set_timeout(timeout)
            self._group = dist.new_group(backend="gloo", timeout=timeout)
        if takes:
            signal.signal(signal.SIGTERM, self._remember)
        try:
            yield
        except BaseException as error:
            if not isinstance(error, Terminated):  # others may be gone: wait for none
                self._group = self._sent = None
            raise
        finally:
            if takes:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if self._group is not None:
                if self._sent is not None:
                    self._sent[0].wait()
                dist.destroy_process_group(self._group)
                self._group = self._sent = None

    def _remember(self, number: int, frame: Any) -> None:
        self._came = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self._is_due = self._is_due or self._any_came()
        # The end of an epoch follows: its evaluation belongs into the checkpoint.
        if self._is_due and not float(state.epoch or 0.5).is_integer():
            self.ends_now = control.should_save = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if self._is_due:
            self.ends_now = control.should_save = True

    def came_to_any(self) -> bool:
        """Whether it came to any process by now; waits for all of them."""
        return self._any_came() or (self._group is not None and self._any_came())

    def _any_came(self) -> bool:
        """Whether it had come to any when this was last asked; of a single process, by now."""
        if self._group is None:
            return self._came
        came = False
        if self._sent is not None:
            work, number = self._sent
            work.wait()
            came = number.item() > 0
        number = torch.tensor(float(self._came))
        self._sent = dist.all_reduce(number, group=self._group, async_op=True), number
        return came
