"""Graphs that torch.compile makes while eps, the number of attack steps and modes change (`training_cost`)."""

import argparse
from collections.abc import Iterator
from functools import partial
from typing import Any

from hf_robust_ft.benchmarks.gpu.cases import Case, Setup
from hf_robust_ft.benchmarks.gpu.models import training_subject
from hf_robust_ft.benchmarks.training_cost import measure_compile


def cases(setup: Setup) -> Iterator[Case]:
    for model in setup.models:
        yield Case(model, "a ramp of eps and of attack steps", partial(measure, setup, model))


def measure(setup: Setup, model: str) -> dict[str, Any]:
    return measure_compile(training_subject(setup, model), argparse.Namespace())
