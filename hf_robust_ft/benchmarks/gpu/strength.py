"""Whether an attack in less precision is a weaker attack: at the eps that fools half of the images in fp32."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from hf_robust_ft.attacks import attack_mode, smallest_fooling_eps
from hf_robust_ft.attacks.threat_model import ThreatModel
from hf_robust_ft.benchmarks import precision as in_precision
from hf_robust_ft.benchmarks.gpu.cases import Case, Setup
from hf_robust_ft.benchmarks.gpu.models import EPS, attacked_subject
from hf_robust_ft.evaluation.protocols import evaluation_attack, resolve_epsilons

SHOWN = ("accuracy under attack", "the same images in fp32", "mean attack loss", "images without a gradient")


def cases(setup: Setup) -> Iterator[Case]:
    for model in setup.models:
        for name in setup.precisions:
            yield Case(model, name, partial(measure, setup, model, name))


def measure(setup: Setup, model: str, precision_name: str) -> dict[str, Any]:
    subject, attack = attacked_subject(setup, model), evaluation_attack(setup.steps)
    target = ThreatModel("Linf", EPS)
    with attack_mode(subject.classifier), in_precision.precision("fp32", torch.device(setup.device)):
        smallest = smallest_fooling_eps(
            subject.classifier, subject.pixels, subject.labels, target,
            epsilons=resolve_epsilons(None, target), attack=attack,
        ).eps  # fmt: skip
    half = ThreatModel("Linf", min(smallest.median().item(), target.eps))
    figures = in_precision.measure(
        precision_name, subject.classifier, subject.pixels, subject.labels, half, attack, setup.batch_size
    )
    return {"eps": 255 * half.eps, **{name: figures[name] for name in SHOWN}}
