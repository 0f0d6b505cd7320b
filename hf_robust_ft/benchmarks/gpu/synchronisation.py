"""Whether a step of the schedules without memory makes the host wait: it must not.

`training_step` is watched, which is attack, loss and backward. On CUDA `torch.cuda.set_sync_debug_mode("error")` makes
its first wait an error; on any device the operations that hand a value to the host are counted.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hf_robust_ft.benchmarks.gpu.cases import Case, Setup
from hf_robust_ft.benchmarks.gpu.models import training_subject
from hf_robust_ft.benchmarks.training_cost import FULL

SCHEDULES = {
    "constant": FULL,
    "sampled": {"eps_schedule": "uniform"},
    "steps grow": FULL | {"attack_steps_schedule": "linear_warmup"},
}
READS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select")
WARM_UP = 2  # steps, in which the first batch is checked


def cases(setup: Setup) -> Iterator[Case]:
    for schedule in SCHEDULES:
        for model in setup.models:
            yield Case(model, f"schedule: {schedule}", partial(measure, setup, model, schedule))


class HostReads(TorchDispatchMode):
    """Notes the operations whose result the host waits for, by name."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        if name in READS:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def measure(setup: Setup, model: str, schedule: str) -> dict[str, Any]:
    subject = training_subject(setup, model)
    trainer = subject.adversarial_trainer(
        max_steps=WARM_UP + 2, attack_steps=setup.steps, schedule_granularity="step", attack_random_start=True,
        **SCHEDULES[schedule],
    )  # fmt: skip
    step, reads, watched = trainer.training_step, HostReads(), []

    def watch(*args, **kwargs):
        if trainer.state.global_step < WARM_UP:
            return step(*args, **kwargs)
        watched.append(trainer.current_eps)
        with reads, no_synchronisation(setup.device):
            return step(*args, **kwargs)

    trainer.training_step = watch
    trainer.train()
    found = 0 if setup.device == "cuda" else "needs CUDA"
    return {"attacked steps": sum(eps > 0 for eps in watched), "values read": len(reads.found), "host waits": found}


@contextmanager
def no_synchronisation(device: str) -> Iterator[None]:
    """On CUDA, an error at the first operation that waits for the device."""
    if device != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
