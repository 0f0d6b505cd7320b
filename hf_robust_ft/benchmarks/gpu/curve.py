"""The accuracy-eps curve by protocol exact and protocol paper over the naive grid, which attacks all at every point."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from hf_robust_ft.attacks import attack_mode
from hf_robust_ft.attacks.threat_model import ThreatModel
from hf_robust_ft.benchmarks.curve_cost import WAYS, in_batches
from hf_robust_ft.benchmarks.gpu.cases import Case, Setup
from hf_robust_ft.benchmarks.gpu.models import EPS, attacked_subject
from hf_robust_ft.benchmarks.precision import precision
from hf_robust_ft.benchmarks.training_cost import in_turn, now, spread
from hf_robust_ft.evaluation.protocols import evaluation_attack, resolve_epsilons


def cases(setup: Setup) -> Iterator[Case]:
    for model in setup.models:
        yield Case(model, f"curve up to {EPS}, bf16", partial(measure, setup, model))


def measure(setup: Setup, model: str) -> dict[str, Any]:
    """Time over the naive grid's of the same round, and expected robustness by each way."""
    subject, threat_model = attacked_subject(setup, model), ThreatModel("Linf", EPS)
    epsilons = resolve_epsilons(None, threat_model)
    options = {"threat_model": threat_model, "epsilons": epsilons, "attack": evaluation_attack(setup.steps)}

    def timed(way):
        begun = now()
        correct = in_batches(way, subject.classifier, subject.pixels, subject.labels, setup.batch_size, **options)
        return now() - begun, correct

    with attack_mode(subject.classifier), precision("bf16", torch.device(setup.device)):
        tools = {name: partial(timed, way) for name, way in WAYS.items()}
        in_turn(tools, 1)
        found = in_turn(tools, setup.rounds)
    seconds = {name: [each for each, _ in rounds] for name, rounds in found.items()}
    figures: dict[str, Any] = {
        f"{name} / naive": spread([own / naive for own, naive in zip(seconds[name], seconds["naive"], strict=True)])
        for name in ("exact", "paper")
    }
    return figures | {f"accuracy over the grid, {name}": found[name][0][1].double().mean().item() for name in WAYS}
