"""AutoAttack (Croce & Hein 2020, arXiv 2003.01690; under L1 Croce & Hein 2021, arXiv 2103.01208).

The attacks are the library pyautoattack's, with its settings; only an accuracy under version "standard" is comparable
with published AutoAttack numbers. What the library finds is checked and judged here.
"""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_robust_ft.attacks.apgd import AttackResult, checked_ball
from hf_robust_ft.attacks.balls import Ball
from hf_robust_ft.attacks.threat_model import ThreatModel

# Fewest classes for each version's losses: DLR ranks three logits, targeted DLR four.
MIN_CLASSES = {"standard": 4, "plus": 4, "rand": 3}

# How far beyond eps and [0, 1] float32 rounding may put the library's points: this much, times eps where eps > 1
# (found: 1e-7 of eps at 224 x 224 pixels under L1).
TOLERANCE = 1e-6


def autoattack(
    logits_fn: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    threat_model: ThreatModel,
    *,
    version: str = "standard",
    seed: int = 0,
    batch_size: int = 64,
) -> AttackResult:
    """Attack the images that the model classifies correctly; the others come back as they are.

    Standard AutoAttack runs APGD on cross-entropy, APGD on the targeted DLR loss, targeted FAB and Square, each on the
    images that withstood the ones before. With 10 classes or more an image that withstands them all costs about 1,900
    gradients and 6,000 forwards.

    Global random states (Python, numpy, torch on every device), the trace function of debuggers and parameters' `.grad`
    come back as they were; modes and `requires_grad` are left to the caller (see `attack_mode`). The library reports
    signs of a weak evaluation, such as random outputs or zero gradients, as warnings of the logger "auto-attack".

    Args:
        logits_fn: module from pixels (N, C, H, W) in [0, 1] to logits (N, K), e.g. a `PixelClassifier`.
        pixels: float (N, C, H, W) in [0, 1].
        labels: int64 (N,), the right classes.
        threat_model: Linf, L2 or L1, and eps in pixel units of [0, 1]; at eps = 0 nothing is attacked.
        version: "standard", or the library's "plus" (more attacks) or "rand" (for models with random outputs).
        seed: the result depends on it and on no global random state.
        batch_size: images at a time.

    Returns:
        An `AttackResult` with cross-entropy as its loss. `fooled`, `loss` and `predictions` are from a forward of
        `logits_fn` on `adversarial`, not from the library's records.

    Raises:
        ImportError: pyautoattack is not installed.
        ValueError: unknown version, too few classes for its losses, pixels outside [0, 1], or other bad arguments.
        RuntimeError: the library returned points outside the ball or outside [0, 1].
    """
    ball = checked_ball(pixels, labels, threat_model)
    _check_arguments(logits_fn, pixels, version, seed, batch_size)
    adversary = _adversary(logits_fn, threat_model, version, seed, pixels.device)
    # Contiguous: the library calls `view`, which fails on channels_last images.
    adversarial, labels = pixels.detach().float().contiguous(), labels.long()
    with _side_effects_undone(logits_fn):
        torch.manual_seed(seed)
        logits = _logits(logits_fn, adversarial, batch_size)
        check_num_classes(logits.shape[1], version)
        right = (logits.argmax(1) == labels).nonzero()[:, 0]
        if ball is not None and len(right):
            for targeted in (adversary.apgd_targeted, adversary.fab):
                targeted.n_target_classes = min(targeted.n_target_classes, logits.shape[1] - 1)
            x = adversarial[right]
            found, _ = adversary.run_standard_evaluation(x, labels[right], batch_size=batch_size)
            _check_found(found, threat_model.ball(x.double()), threat_model)
            adversarial = adversarial.index_copy(0, right, found)
            logits = logits.index_copy(0, right, _logits(logits_fn, found, batch_size))
    predictions = logits.argmax(1)
    loss = F.cross_entropy(logits, labels, reduction="none")
    return AttackResult(adversarial, predictions != labels, loss, predictions)


def check_autoattack(num_images: int) -> None:
    """Fail before a long run rather than in it: is AutoAttack installed, and is this a number of images?

    Raises:
        ImportError: pyautoattack is not installed.
        ValueError: not a whole number of at least 1.
    """
    if not isinstance(num_images, int) or isinstance(num_images, bool) or num_images < 1:
        raise ValueError(f"autoattack must be the number of images to run it on, 1 or more; got {num_images!r}.")
    _library()


def _library() -> ModuleType:
    try:
        import pyautoattack
    except ImportError as error:
        raise ImportError(
            'AutoAttack needs the library pyautoattack: pip install "hf_robust_ft[autoattack]"'
        ) from error
    return pyautoattack


def _adversary(logits_fn: nn.Module, threat_model: ThreatModel, version: str, seed: int, device: torch.device) -> Any:
    return _library().AutoAttack(
        lambda x: logits_fn(x).float(),  # in bfloat16 the library's comparisons would be full of ties
        norm=threat_model.norm,
        eps=threat_model.eps,
        version=version,
        seed=seed,
        device=device,
    )


def _check_arguments(logits_fn: nn.Module, pixels: Tensor, version: str, seed: int, batch_size: int) -> None:
    if version not in MIN_CLASSES:
        raise ValueError(f"Unknown AutoAttack version {version!r}. Valid: {', '.join(map(repr, MIN_CLASSES))}.")
    if not isinstance(logits_fn, nn.Module):
        # FAB calls `backward`, so the parameters whose .grad is to be kept must be known.
        raise ValueError(
            f"autoattack needs a torch module from pixels to logits, e.g. PixelClassifier(model); "
            f"got a {type(logits_fn).__name__}."
        )
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ValueError(f"seed must be a whole number, got {seed!r}.")
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size!r}.")
    if not _in_range(pixels):
        raise ValueError(
            f"AutoAttack assumes pixels in [0, 1], got values from {pixels.min():.4g} to {pixels.max():.4g}. Undo the "
            "normalisation first: PixelSpace.clipped_pixels(pixel_values)."
        )


def check_num_classes(num_classes: int, version: str = "standard") -> None:
    """Raise a ValueError if a version of AutoAttack is undefined for so few classes."""
    if num_classes < MIN_CLASSES[version]:
        raise ValueError(
            f"AutoAttack {version!r} needs at least {MIN_CLASSES[version]} classes, the model has {num_classes}: its "
            "DLR losses rank more logits than there are. Use this package's APGD with more steps and restarts: "
            "APGD(steps=100, loss='ce', restarts=5, select='fooled')."
        )


def _check_found(found: Tensor, ball: Ball, threat_model: ThreatModel) -> None:
    """Raise a RuntimeError unless the library's points are in the ball and in [0, 1]; `ball` is in float64."""
    distance = ball.distance(found.double())
    allowed = threat_model.eps + TOLERANCE * max(1.0, threat_model.eps)
    if (distance > allowed).any() or not _in_range(found):
        raise RuntimeError(
            f"AutoAttack left the threat model {threat_model}: distances up to {distance.max():.8g} where eps is "
            f"{threat_model.eps:.8g}, pixels from {found.min():.8g} to {found.max():.8g}. No accuracy can be based on "
            "it; please report it with the model and the versions of torch and pyautoattack."
        )


def _in_range(pixels: Tensor) -> bool:
    """Whether all are in [0, 1] up to rounding, and none is NaN."""
    return bool(((pixels >= -TOLERANCE) & (pixels <= 1 + TOLERANCE)).all())


def _logits(logits_fn: nn.Module, pixels: Tensor, batch_size: int) -> Tensor:
    with torch.no_grad():
        return torch.cat([logits_fn(x).float() for x in pixels.split(batch_size)])


@contextmanager
def _side_effects_undone(module: nn.Module) -> Iterator[None]:
    """Put back what the library changes: it seeds torch, calls `backward`, and switches the trace function off."""
    python, numpy, trace = random.getstate(), np.random.get_state(), sys.gettrace()
    gradients = [(parameter, parameter.grad) for parameter in module.parameters()]
    try:
        for parameter, _ in gradients:
            parameter.grad = None  # FAB's `backward` would add to it in place
        with torch.random.fork_rng(range(torch.accelerator.device_count())):
            yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        sys.settrace(trace)
        np.random.set_state(numpy)
        random.setstate(python)
