"""Auto-PGD (Croce & Hein 2020, arXiv 2003.01690), without a data-dependent host synchronisation.

n steps cost n forwards with an input gradient and one more forward. Every decision is a `torch.where` on the
device, so the attack also runs on `device="meta"`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_robust_ft.losses import get_loss
from hf_robust_ft.threat_models import ThreatModel

LogitsFn = Callable[[Tensor], Tensor]

MOMENTUM = 0.75
RISING_SHARE = 0.75  # a step size is kept while the loss rises in more than this share of a window's steps


@dataclass(frozen=True)
class AttackResult:
    """What an attack found, per image.

    Attributes:
        adversarial: (N, C, H, W) float32 pixels in [0, 1], inside the ball.
        fooled: (N,) bool, whether `adversarial` is misclassified.
        loss: (N,) float32, the attack loss at `adversarial`.
        predictions: (N,) int64, the class predicted for `adversarial`.
    """

    adversarial: Tensor
    fooled: Tensor
    loss: Tensor
    predictions: Tensor


@dataclass(frozen=True)
class APGD:
    """The settings of `apgd`, whose arguments they are; call it as `APGD(steps=10)(logits_fn, pixels, labels, tm)`.

    Raises:
        ValueError: unknown loss or selection, or a count below 1.
    """

    steps: int = 10
    loss: str = "ce"
    random_start: bool = True
    restarts: int = 1
    select: str = "loss"

    def __post_init__(self):
        get_loss(self.loss)
        for name in ("steps", "restarts"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"APGD needs {name} to be a whole number of at least 1, got {value!r}.")
        if self.select not in ("loss", "fooled"):
            raise ValueError(f"Unknown selection {self.select!r}. Valid: 'loss', 'fooled'.")

    def __str__(self) -> str:
        parts = [f"APGD-{self.loss.upper()}-{self.steps}"]
        parts += ["random start" if self.random_start else "clean start"]
        parts += [f"{self.restarts} restarts"] if self.restarts > 1 else []
        return ", ".join(parts)

    def __call__(
        self,
        logits_fn: LogitsFn,
        pixels: Tensor,
        labels: Tensor,
        threat_model: ThreatModel,
        *,
        eps: float | Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> AttackResult:
        """Attack `pixels` (N, C, H, W) in [0, 1]; see `apgd`."""
        _check_arguments(pixels, labels, eps)
        radius = threat_model.eps if eps is None else eps
        if not isinstance(radius, Tensor):
            radius = ThreatModel(threat_model.norm, radius).eps
        if not isinstance(radius, Tensor) and radius == 0:
            return _evaluate_only(logits_fn, pixels, labels, self.loss)
        if self.random_start and generator is None and pixels.device.type != "meta":
            # A generator of its own, at its fixed default seed: the global RNG stays untouched.
            generator = torch.Generator(pixels.device)
        best = None
        for _ in range(self.restarts):
            run = _single_run(self, logits_fn, pixels, labels, threat_model, radius, generator)
            best = run if best is None else _keep_better(best, run, _is_better(best, run, self.select))
        return _as_result(best, self.loss)


def apgd(
    logits_fn: LogitsFn,
    pixels: Tensor,
    labels: Tensor,
    threat_model: ThreatModel,
    *,
    steps: int = 10,
    loss: str = "ce",
    random_start: bool = True,
    restarts: int = 1,
    select: str = "loss",
    eps: float | Tensor | None = None,
    generator: torch.Generator | None = None,
) -> AttackResult:
    """Search the ball around each image for the point of highest loss.

    The first step is 2 eps long; step sizes always follow the current eps. No parameter gradient, module mode or
    global random state is touched; wrap the call in `attack_mode(model)` to attack in evaluation mode. The iterate
    is float32 under any autocast. At eps = 0 the images come back as they are, for one forward.

    Args:
        logits_fn: pixels (N, C, H, W) in [0, 1] -> logits (N, K), e.g. a `PixelClassifier`.
        pixels: float32 (N, C, H, W) in [0, 1]; not checked here, since that would wait for the device.
        labels: int64 (N,), the classes to move away from.
        threat_model: the ball.
        steps: gradient steps n.
        loss: a key of `hf_robust_ft.losses.LOSSES`.
        random_start: start from a random point of the ball instead of the image itself.
        restarts: independent runs, of which each image keeps its best (only useful with `random_start`).
        select: "loss" returns the point of highest loss visited, as training wants; "fooled" prefers misclassified
            points over any others, as AutoAttack does and evaluation wants.
        eps: radius in pixel units of [0, 1] in place of the threat model's, or one per image as a tensor (N,).
        generator: source of the random starts; without one, a fresh generator at torch's default seed.

    Returns:
        An `AttackResult`. With `select="loss"` its loss is never below that of the starting point.

    Raises:
        ValueError: unknown loss, counts below 1, or shapes that do not match.
    """
    config = APGD(steps=steps, loss=loss, random_start=random_start, restarts=restarts, select=select)
    return config(logits_fn, pixels, labels, threat_model, eps=eps, generator=generator)


@dataclass
class _Point:
    """One point per image and what the model said of it; `loss` is the objective, `gradient` None where not needed."""

    x: Tensor
    loss: Tensor
    fooled: Tensor
    predictions: Tensor
    gradient: Tensor | None = None


def _single_run(
    config: APGD,
    logits_fn: LogitsFn,
    pixels: Tensor,
    labels: Tensor,
    threat_model: ThreatModel,
    eps: float | Tensor,
    generator: torch.Generator | None,
) -> _Point:
    """One APGD run: momentum steps, halved and sent back to the best point when a window brings too little."""
    ball = threat_model.ball(pixels.detach().float(), eps)
    x = ball.random_start(generator) if config.random_start else ball.center
    current = best = chosen = _visit(logits_fn, x, labels, config.loss, with_gradient=True)
    previous_x = x
    step_size = (2 * ball.eps).expand(len(pixels), *[1] * (pixels.ndim - 1))

    window, shortest, shrink = (max(int(share * config.steps), 1) for share in (0.22, 0.06, 0.03))
    steps_in_window = 0
    rises = torch.zeros_like(current.loss)
    loss_at_checkpoint = current.loss
    halved_before = torch.ones_like(current.fooled)

    for step in range(config.steps):
        momentum = MOMENTUM if step > 0 else 1.0
        plain = ball.project(ball.ascent_step(current.x, current.gradient, step_size))
        x = current.x + momentum * (plain - current.x) + (1 - momentum) * (current.x - previous_x)
        previous_x, previous_loss = current.x, current.loss
        is_last = step == config.steps - 1
        current = _visit(logits_fn, ball.project(x), labels, config.loss, with_gradient=not is_last)

        rises = rises + (current.loss > previous_loss)
        best = _keep_better(best, current, current.loss > best.loss)
        if config.select == "fooled":
            chosen = _keep_better(chosen, current, _is_better(chosen, current, "fooled"))
        steps_in_window += 1
        if steps_in_window == window and not is_last:
            oscillates = rises <= RISING_SHARE * window
            stalls = ~halved_before & (loss_at_checkpoint >= best.loss)
            halve = oscillates | stalls
            step_size = torch.where(_per_image(halve, step_size), step_size / 2, step_size)
            current = _keep_better(current, best, halve)
            loss_at_checkpoint, halved_before = best.loss, halve
            rises = torch.zeros_like(rises)
            window, steps_in_window = max(window - shrink, shortest), 0
    return chosen if config.select == "fooled" else best


def _visit(logits_fn: LogitsFn, x: Tensor, labels: Tensor, loss: str, with_gradient: bool) -> _Point:
    with torch.set_grad_enabled(with_gradient):
        x = x.detach().requires_grad_(with_gradient)
        logits = logits_fn(x)
        objective = get_loss(loss).objective(logits, labels)
        gradient = torch.autograd.grad(objective.sum(), x)[0] if with_gradient else None
    predictions = logits.detach().argmax(1)
    return _Point(x.detach(), objective.detach(), predictions != labels, predictions, gradient)


def _is_better(old: _Point, new: _Point, select: str) -> Tensor:
    if select == "loss":
        return new.loss > old.loss
    return (new.fooled & ~old.fooled) | ((new.fooled == old.fooled) & (new.loss > old.loss))


def _keep_better(old: _Point, new: _Point, better: Tensor) -> _Point:
    """`new` where `better` (N,), `old` elsewhere."""
    gradient = None
    if old.gradient is not None and new.gradient is not None:
        gradient = torch.where(_per_image(better, old.x), new.gradient, old.gradient)
    return _Point(
        torch.where(_per_image(better, old.x), new.x, old.x),
        torch.where(better, new.loss, old.loss),
        torch.where(better, new.fooled, old.fooled),
        torch.where(better, new.predictions, old.predictions),
        gradient,
    )


def _per_image(mask: Tensor, like: Tensor) -> Tensor:
    return mask.view(-1, *[1] * (like.ndim - 1))


def _evaluate_only(logits_fn: LogitsFn, pixels: Tensor, labels: Tensor, loss: str) -> AttackResult:
    return _as_result(_visit(logits_fn, pixels, labels, loss, with_gradient=False), loss)


def _as_result(point: _Point, loss: str) -> AttackResult:
    return AttackResult(point.x, point.fooled, get_loss(loss).value(point.loss), point.predictions)


def _check_arguments(pixels: Tensor, labels: Tensor, eps: float | Tensor | None) -> None:
    if pixels.ndim != 4 or not pixels.is_floating_point():
        raise ValueError(
            f"pixels must be a float tensor (N, C, H, W) in [0, 1], got {pixels.dtype} of shape {tuple(pixels.shape)}."
        )
    if labels.shape != pixels.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"labels must be class indices of shape ({len(pixels)},), "
            f"got {labels.dtype} of shape {tuple(labels.shape)}."
        )
    if isinstance(eps, Tensor) and eps.shape != pixels.shape[:1]:
        raise ValueError(f"eps must be a number or one per image, ({len(pixels)},); got shape {tuple(eps.shape)}.")
