"""SIGTERM, which schedulers send before they take a machine away, and Ctrl-C: training saves a checkpoint and ends.

Not by transformers' `enable_jit_checkpoint`: there each process decides by its own clock, so several wait for each
other for ever; it saves in the middle of an accumulated step, from where a resumed run differs; with
`save_total_limit=1` the end of training may delete what it saved; and the script goes on as if training were done.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

HANDLED = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}  # where nobody else does


class Terminated(SystemExit):
    """Training was stopped by SIGTERM, after it saved a checkpoint; uncaught, the process ends with exit code 143.

    143 is what shells and schedulers take for "ended by SIGTERM": with 0, jobs that wait for this one would start on an
    unfinished model.
    """

    number, signal_name = signal.SIGTERM, "SIGTERM"

    def __init__(self, message: str):
        super().__init__(128 + self.number)
        self.message = message

    def __str__(self) -> str:
        return self.message


class Interrupted(Terminated, KeyboardInterrupt):
    """The same by Ctrl-C: exit code 130, and a `KeyboardInterrupt` for a script that waits for one."""

    number, signal_name = signal.SIGINT, "Ctrl-C"


class TerminationCallback(TrainerCallback):
    """Asks for a checkpoint once SIGTERM or Ctrl-C came to this process or, of several, to any.

    It saves after the optimizer step at hand, and after the evaluation of an epoch that ends with it. Several processes
    agree by a number that each sends after every step and reads after the next, over a gloo group of its own: nothing
    waits for an accelerator, and all stop after the same step.

    Attributes:
        ends_now: whether training is to end once what it has asked for is saved, on all processes alike.
        signal: what came, as all processes know it; 0 for nothing.
    """

    def __init__(self):
        self.ends_now = self._is_due = False
        self.signal = self._came = 0
        self._group: Any = None
        self._sent: tuple[Any, torch.Tensor] | None = None

    @contextmanager
    def listening(self, timeout: timedelta) -> Iterator[None]:
        """Take SIGTERM and Ctrl-C for a while; a handler that someone else has installed stays.

        Args:
            timeout: after which processes that do not answer end in an error, here and in training's own collectives:
                whoever began the process group (a `PartialState()` anywhere before) may not have known it.
        """
        self.ends_now = self._is_due = False
        self.signal = self._came = 0
        in_main = threading.current_thread() is threading.main_thread()
        taken = [number for number, usual in HANDLED.items() if in_main and signal.getsignal(number) is usual]
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.set_timeout(timeout)
            self._group = dist.new_group(backend="gloo", timeout=timeout)
        for number in taken:
            signal.signal(number, self._remember)
        try:
            yield
        except BaseException as error:
            if not isinstance(error, Terminated):  # others may be gone: wait for none
                self._group = self._sent = None
            raise
        finally:
            for number in taken:
                signal.signal(number, HANDLED[number])
            if self._group is not None:
                if self._sent is not None:
                    self._sent[0].wait()
                dist.destroy_process_group(self._group)
                self._group = self._sent = None

    def _remember(self, number: int, frame: Any) -> None:
        self._came = max(self._came, number)
        if number == signal.SIGINT:
            signal.signal(number, HANDLED[number])  # whoever presses it again does not want to wait
            if os.environ.get("RANK", "0") == "0":  # a step may take long; `print` is not safe in a handler
                os.write(2, b"\nCtrl-C: saving a checkpoint after this step; Ctrl-C again stops at once.\n")

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
            self.signal = self._came
            return self.signal > 0
        if self._sent is not None:
            work, number = self._sent
            work.wait()
            self.signal = int(number.item())
        number = torch.tensor(self._came)
        self._sent = dist.all_reduce(number, dist.ReduceOp.MAX, group=self._group, async_op=True), number
        return self.signal > 0
