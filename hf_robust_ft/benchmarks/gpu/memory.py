"""Peak memory of an attacked step beside a plain Trainer's, with and without activation checkpointing.

On CUDA, what torch allocated during the last step of a short training. On any device also counted tensors, of models
without weights (`live_tensors`): the attack by itself, and a training pass by itself, forward and backward.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from hf_robust_ft.attacks import APGD
from hf_robust_ft.attacks.pixels import PixelSpace
from hf_robust_ft.attacks.threat_model import ThreatModel
from hf_robust_ft.benchmarks.gpu.cases import Case, Setup
from hf_robust_ft.benchmarks.gpu.models import EPS, build_model, image_size, training_subject
from hf_robust_ft.benchmarks.live_tensors import LiveTensors
from hf_robust_ft.benchmarks.training_cost import FULL, NOTHING, PeakOfLastStep
from hf_robust_ft.training.adversary import Adversary

CHECKPOINTED = {"activation_checkpointing": True}
STEPS = {
    "plain Trainer": None,
    "ours, eps = 0": NOTHING,
    "ours, full eps": FULL,
    "ours, full eps, activation checkpointing": FULL | CHECKPOINTED,
}


def cases(setup: Setup) -> Iterator[Case]:
    for model in setup.models:
        for checkpointed in (False, True) if can_checkpoint(model) else (False,):
            setting = "counted, activation checkpointing" if checkpointed else "counted"
            yield Case(model, setting, partial(count, setup, model, checkpointed))
    if setup.device == "cuda":
        for kind in STEPS:
            for model in setup.models:
                if "checkpointing" not in kind or can_checkpoint(model):
                    yield Case(model, kind, partial(measure, setup, model, kind))


def can_checkpoint(model: str) -> bool:
    return build_model(model, small=True, device="meta").supports_gradient_checkpointing


def count(setup: Setup, model: str, checkpointed: bool = False) -> dict[str, Any]:
    """MiB that the attack and a training pass add to what was there, at their peaks."""
    network = build_model(model, setup.small, "meta").train()
    if checkpointed:
        network.activation_checkpointing_enable({"use_reentrant": False})
    batch = {
        "pixel_values": torch.zeros(setup.batch_size, 3, *[image_size(setup.small)] * 2, device="meta"),
        "labels": torch.zeros(setup.batch_size, dtype=torch.long, device="meta"),
    }
    peaks = {"attack": attack_peak(network, batch, setup.steps), "training pass": training_peak(network, batch)}
    figures: dict[str, Any] = {f"{name} (MiB)": peak / 2**20 for name, peak in peaks.items()}
    return figures | {"attack / training pass": peaks["attack"] / peaks["training pass"]}


def attack_peak(model: nn.Module, batch: dict[str, torch.Tensor], steps: int) -> int:
    """Bytes, at most, of a training attack on the batch."""
    adversary, threat_model = Adversary(PixelSpace((0.5,) * 3, (0.5,) * 3)), ThreatModel("Linf", EPS)
    with LiveTensors() as live:
        attack = APGD(steps=steps, random_start=False)
        adversary.attack(model, batch, threat_model, eps=threat_model.eps, attack=attack)
    return live.peak


def training_peak(model: nn.Module, batch: dict[str, torch.Tensor]) -> int:
    """Bytes, at most, of a forward and backward pass, with the gradients of the weights."""
    with LiveTensors() as live:
        model(**batch).loss.backward()
    model.zero_grad()
    return live.peak


def measure(setup: Setup, model: str, kind: str) -> dict[str, Any]:
    """MiB by which the last of three steps raised what is allocated."""
    subject, peak = training_subject(setup, model), PeakOfLastStep()
    settings: dict[str, Any] = {"callbacks": [peak], "max_steps": 3, "bf16": True}
    if STEPS[kind] is None:
        subject.plain_trainer(**settings).train()
    else:
        subject.adversarial_trainer(**settings, attack_steps=setup.steps, **STEPS[kind]).train()
    return {"step (MiB)": peak.rise}
