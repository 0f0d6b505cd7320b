"""Robust fine-tuning as a plain PyTorch script does it: a fixed eps (RFT-fix) and torchattacks' APGD."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hf_robust_ft.attacks.pixels import PixelClassifier, PixelSpace
from hf_robust_ft.attacks.threat_model import ThreatModel


class LoopResult(NamedTuple):
    """What a loop did.

    Args:
        steps: optimizer steps.
        attacked: share of the images that the attack worked on; torchattacks leaves out those that are wrong already.
    """

    steps: int
    attacked: float


def fine_tune_in_a_loop(
    model: nn.Module,
    pixel_space: PixelSpace,
    loader: DataLoader,
    threat_model: ThreatModel,
    *,
    epochs: int,
    learning_rate: float,
    attack_steps: int = 7,
    on_step: Callable[[], None] | None = None,
) -> LoopResult:
    """Train on torchattacks' adversarial examples at the full eps, in the memory format the model has.

    The learning rate is cosine-annealed and gradients are clipped at 1, as Trainer's are in the runs compared.

    Args:
        loader: batches of `pixel_values` (N, C, H, W), normalised, and `labels` (N,).
        on_step: called before every step.
    """
    import torchattacks

    device = next(model.parameters()).device
    classifier = PixelClassifier(model, pixel_space)
    attack = torchattacks.APGD(classifier, norm=threat_model.norm, eps=threat_model.eps, steps=attack_steps)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, fused=True)
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    images, gradients, steps = 0, 0, 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal gradients
        gradients += len(inputs[0]) if inputs[0].requires_grad else 0

    hook = classifier.register_forward_pre_hook(count)
    model.train()
    for _ in range(epochs):
        for batch in loader:
            if on_step is not None:
                on_step()
            labels = batch["labels"].to(device)
            pixels = pixel_space.clipped_pixels(batch["pixel_values"].to(device))
            adversarial = attack(pixels, labels)
            classifier.train()
            loss = F.cross_entropy(classifier(adversarial.detach()), labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            annealing.step()
            optimizer.zero_grad()
            images, steps = images + len(labels), steps + 1
    hook.remove()
    return LoopResult(steps, gradients / images / (attack_steps + 1))  # it takes one gradient at its start as well
