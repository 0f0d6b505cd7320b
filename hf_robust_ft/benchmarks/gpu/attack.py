"""APGD's time over n input gradients and one forward: ours, AutoAttack's and torchattacks'."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from hf_robust_ft.benchmarks.attack_cost import (
    LIMIT,
    PEERS,
    attacks,
    check_all_attacked,
    count_passes,
    ratios_to_limit,
    time_in_turn,
)
from hf_robust_ft.benchmarks.gpu.cases import Case, Setup
from hf_robust_ft.benchmarks.gpu.models import attacked_subject
from hf_robust_ft.benchmarks.precision import precision


def cases(setup: Setup) -> Iterator[Case]:
    for name in reversed(setup.precisions):
        for model in setup.models:
            yield Case(model, f"APGD-{setup.steps}, {name}", partial(measure, setup, model, name))


def measure(setup: Setup, model: str, precision_name: str) -> dict[str, Any]:
    """Ratios to the bare passes of the same round, all tools in one precision and layout."""
    subject = attacked_subject(setup, model)
    with precision(precision_name, torch.device(setup.device)):
        tools = attacks(subject, setup.steps)
        passes = {name: count_passes(subject.classifier, work, setup.batch_size) for name, work in tools.items()}
        check_all_attacked(passes, setup.steps)
        seconds = time_in_turn(tools, setup.rounds, setup.device)
    ratios = ratios_to_limit(seconds)
    figures = {f"{name} / bare passes": ratios.get(name, "not installed") for name in ("ours", *PEERS)}
    return figures | {"bare passes (ms)": 1e3 * min(seconds[LIMIT])}
