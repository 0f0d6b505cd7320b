"""The sections of the benchmark, in the order in which they run, and how they share the time."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from hf_robust_ft.benchmarks.gpu import (
    attack,
    curve,
    memory,
    recompilation,
    strength,
    synchronisation,
    train_step,
)
from hf_robust_ft.benchmarks.gpu.cases import Case, Setup


class Section(NamedTuple):
    """Part of the report.

    Args:
        title: in the table.
        share: of the time, relative to the others'.
        cases: what it measures, in the order of what is wanted most.
    """

    title: str
    share: float
    cases: Callable[[Setup], Iterator[Case]]


SECTIONS = {
    "attack": Section("attack over bare passes", 2, attack.cases),
    "train_step": Section("training step", 4, train_step.cases),
    "memory": Section("memory", 1, memory.cases),
    "synchronisation": Section("host waits", 1, synchronisation.cases),
    "recompilation": Section("compiled graphs", 1.5, recompilation.cases),
    "curve": Section("curve over the naive grid", 1, curve.cases),
    "strength": Section("attack strength", 1, strength.cases),
}
