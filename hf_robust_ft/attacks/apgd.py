"""Auto-PGD (Croce & Hein 2020, arXiv 2003.01690), without a data-dependent host synchronisation.

The whole attack on a batch, with its defaults and a start at the images. What it moves by is the ball's: under Linf,
`ascent_step` is `x + step_size * sign(gradient)` and `project` a clamp.

>>> from hf_robust_ft.attacks.losses import log_cross_entropy  # cross-entropy's order and directions, no underflow
>>> def auto_pgd(logits_fn, images, labels, ball, steps):
...     def visit(x):
...         x = x.detach().requires_grad_()
...         loss = log_cross_entropy(logits_fn(x), labels)
...         return x.detach(), loss.detach(), torch.autograd.grad(loss.sum(), x)[0]
...
...     def keep_better(old, new, better):  # image by image
...         return [torch.where(better.view(-1, *[1] * (a.ndim - 1)), b, a) for a, b in zip(old, new, strict=True)]
...
...     x, loss, gradient = best = visit(images)
...     step_size = (2 * ball.eps).expand(len(images), 1, 1, 1)
...     window, steps_in_window, rises = max(int(0.22 * steps), 1), 0, torch.zeros(len(images))
...     loss_at_checkpoint, halved = loss, torch.ones(len(images), dtype=torch.bool)
...     for step in range(steps):
...         new_x = ball.project(ball.ascent_step(x, gradient, step_size))
...         if step > 0:  # momentum
...             new_x = ball.project(torch.lerp(x, new_x, 0.75) + 0.25 * (x - previous_x))
...         previous_x, previous_loss = x, loss
...         x, loss, gradient = visit(new_x)  # the last needs no gradient: n steps are n gradients and one forward
...         best = keep_better(best, (x, loss, gradient), loss > best[1])
...         rises += (loss > previous_loss) | (step == 0)
...         steps_in_window += 1
...         if steps_in_window == window:  # a checkpoint: where a window brought too little, halve and go back
...             stalls = ~halved & (loss_at_checkpoint >= best[1])
...             halved = (rises <= 0.75 * window) | stalls
...             step_size = torch.where(halved.view(-1, 1, 1, 1), step_size / 2, step_size)
...             x, loss, gradient = keep_better((x, loss, gradient), best, halved)
...             loss_at_checkpoint, rises, steps_in_window = best[1], torch.zeros(len(images)), 0
...             window = max(window - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
...     return best[0]
>>> images, labels, matrix = torch.rand(64, 3, 6, 6), torch.arange(64) % 4, torch.randn(108, 4)
>>> model = lambda x: (x.flatten(1) @ matrix).sin()
>>> for threat_model in ThreatModel("Linf", "8/255"), ThreatModel("L2", 0.5):
...     ours = apgd(model, images, labels, threat_model, steps=20, random_start=False)
...     print(torch.equal(auto_pgd(model, images, labels, threat_model.ball(images), 20), ours.adversarial))
True
True

`ApgdRun` is this loop a step at a time, and adds what is not in the paper's algorithm: steps for L1, a loss scale for
float16, balls of a larger eps first. Every decision is a `torch.where` on the device, so the attack also runs on
`device="meta"` and under `torch.compile(fullgraph=True)`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_robust_ft.attacks.aims import reference_of, target_classes
from hf_robust_ft.attacks.apgd_run import ApgdRun, Point, evaluate_point, keep_better
from hf_robust_ft.attacks.balls import Ball
from hf_robust_ft.attacks.larger_eps import eps_phases
from hf_robust_ft.attacks.losses import get_loss
from hf_robust_ft.attacks.threat_model import ThreatModel

LogitsFn = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class AttackResult:
    """What an attack found, per image.

    Attributes:
        adversarial: (N, C, H, W) float32 pixels in [0, 1], inside the ball.
        fooled: (N,) bool, whether `adversarial` is misclassified; of one label a pixel, in most of the labelled ones.
        loss: (N,) float32, the attack loss at `adversarial`, or its `AttackLoss.compared`; targeted, of the best class.
        predictions: (N,) int64, the class predicted for `adversarial`; of one label a pixel, (N, H, W).
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
    num_targets: int = 9
    larger_eps: bool = False

    def __post_init__(self):
        get_loss(self.loss)
        for name in ("steps", "restarts", "num_targets"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"APGD needs {name} to be a whole number of at least 1, got {value!r}.")
        for name in ("random_start", "larger_eps"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"APGD needs {name} to be True or False, got {getattr(self, name)!r}.")
        if self.select not in ("loss", "fooled"):
            raise ValueError(f"Unknown selection {self.select!r}. Valid: 'loss', 'fooled'.")

    def __str__(self) -> str:
        parts = [f"APGD-{self.loss.upper().replace('_', '-')}-{self.steps}"]
        parts += [f"{self.num_targets} targets"] if get_loss(self.loss).targeted else []
        parts += ["random start" if self.random_start else "clean start"]
        parts += [f"{self.restarts} restarts"] if self.restarts > 1 else []
        parts += ["larger eps first"] if self.larger_eps else []
        return ", ".join(parts)

    def __call__(
        self,
        logits_fn: LogitsFn,
        pixels: Tensor,
        labels: Tensor,
        threat_model: ThreatModel,
        *,
        eps: float | Tensor | None = None,
        start: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> AttackResult:
        """Attack `pixels` (N, C, H, W) in [0, 1]; see `apgd`."""
        ball = checked_ball(pixels, labels, threat_model, eps, dense=get_loss(self.loss).dense)
        self.check_start(start)
        if ball is None:
            loss = "dlr" if get_loss(self.loss).targeted else self.loss  # there is no class to aim at
            reference = reference_of(get_loss(loss), logits_fn, pixels)
            return as_result(evaluate_point(logits_fn, pixels, labels, get_loss(loss), reference), loss)
        best = None
        for x, targets in self.starts(logits_fn, ball, labels, start, generator):
            found = single_run(self, logits_fn, ball, labels, x, targets, warm=start is not None)
            best = found if best is None else keep_better(best, found, found.is_better_than(best, self.select))
        return as_result(best, self.loss)

    def check_start(self, start: Tensor | None) -> None:
        """Raise a ValueError for a start that the attack would leave, or has no gradient at.

        Args:
            start: an earlier find to go on from.
        """
        if start is None and not self.random_start and get_loss(self.loss).needs_reference:
            raise ValueError(
                f"The loss {self.loss!r} has no gradient at the image itself: set random_start=True, or pass `start`."
            )
        if start is not None and self.random_start:
            raise ValueError("An attack has one starting point: pass `start` only with random_start=False.")
        if start is not None and self.larger_eps:
            raise ValueError("The larger balls would lead away from an earlier find: pass `start` without larger_eps.")

    def starts(
        self,
        logits_fn: LogitsFn,
        ball: Ball,
        labels: Tensor,
        start: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Where each run starts and what it aims at or compares with: one pair per restart and target class."""
        if self.random_start and generator is None and ball.center.device.type != "meta":
            # A generator of its own, at its fixed default seed: the global RNG stays untouched.
            generator = torch.Generator(ball.center.device)
        widest = ball.scaled(eps_phases(self)[0].factor) if self.random_start else ball
        ranked = [reference_of(get_loss(self.loss), logits_fn, ball.center)]
        if get_loss(self.loss).targeted:
            begin = ball.center if start is None else ball.project(start)
            ranked = target_classes(logits_fn, begin, labels, self.num_targets)
        for _ in range(self.restarts):
            for targets in ranked:
                x = ball.center if start is None else ball.project(start)
                yield widest.random_start(generator) if self.random_start else x, targets


def single_run(
    config: APGD,
    logits_fn: LogitsFn,
    ball: Ball,
    labels: Tensor,
    x: Tensor,
    targets: Tensor | None = None,
    warm: bool = False,
) -> Point:
    """All steps of one run from `x`, which is `warm` if it is an earlier find."""
    run = ApgdRun(config, logits_fn, ball, labels, x, targets, warm)
    for _ in range(config.steps):
        run.step()
    return run.result


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
    num_targets: int = 9,
    larger_eps: bool = False,
    eps: float | Tensor | None = None,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> AttackResult:
    """Search the ball around each image for the point of highest loss.

    The first step is 2 eps long (eps under L1); step sizes always follow the current eps. No parameter gradient,
    module mode or global random state is touched; wrap the call in `attack_mode(model)` to attack in evaluation mode.
    The iterate is float32 under any autocast, and a loss scale that backs off keeps float16 gradients finite and
    non-zero. At eps = 0 the images come back as they are, for one forward.

    Args:
        logits_fn: pixels (N, C, H, W) in [0, 1] -> logits (N, K), as a `PixelClassifier`'s, or of a dense loss
            (N, K, H', W'), as a `PixelSegmenter`'s.
        pixels: float32 (N, C, H, W) in [0, 1]; not checked here, since that would wait for the device.
        labels: int64 (N,), the classes to move away from; with loss="ce" also float32 (N, K), shares of classes
            (mixup), an image then being fooled where its largest one is not predicted.
            With a dense loss (N, H', W'), below 0 where none counts.
        threat_model: the ball: Linf, L2, or L1 (with the sparse steps of arXiv 2103.01208).
        steps: gradient steps n.
        loss: a key of `hf_robust_ft.attacks.losses.LOSSES`: "ce", "dlr", "dlr_targeted"; for training also
            "kl", the divergence from the clean image's answer (one forward more), and "features" (objective fare).
            Dense, of one label a pixel: those of `attacks.dense_losses`, as "pixel_ce".
        random_start: start from a random point of the ball instead of the image itself.
        restarts: independent runs, of which each image keeps its worst case (only useful with `random_start`).
        select: "loss" returns the point of highest loss visited, as training wants; "fooled" prefers misclassified
            points over any others, as AutoAttack does and evaluation wants; of one label a pixel, fewest right ones.
        num_targets: of a targeted loss, how many of the likeliest wrong classes to aim at, one run each; with K
            classes at most K - 1.
        larger_eps: spend 0.3 of the steps in a ball of 3 eps and 0.3 in one of 2 eps, each phase beginning at the
            projection of the last one's best point (arXiv 2103.01208; AutoAttack's setting under L1). For 2 forwards
            more, much stronger under L1, where plain steps from the image seldom find the few pixels that matter.
            Below 4 steps there are no such phases. With a dense loss the balls are 2 and 1.5 eps (arXiv 2306.12941).
        eps: radius in pixel units of [0, 1] in place of the threat model's, or one per image as a tensor (N,).
        start: an earlier find to go on from instead of the image, (N, C, H, W); projected on the ball, left with
            steps of eps / 2. Not with `random_start` or `larger_eps`.
        generator: source of the random starts; without one, a fresh generator at torch's default seed.

    Returns:
        An `AttackResult`. With `select="loss"` its loss is never below that of the starting point.

    Raises:
        ValueError: unknown loss, counts below 1, fewer classes than the loss is defined for, or shapes that do not
            match.
    """
    config = APGD(
        steps=steps,
        loss=loss,
        random_start=random_start,
        restarts=restarts,
        select=select,
        num_targets=num_targets,
        larger_eps=larger_eps,
    )
    return config(logits_fn, pixels, labels, threat_model, eps=eps, start=start, generator=generator)


def checked_ball(
    pixels: Tensor, labels: Tensor, threat_model: ThreatModel, eps: float | Tensor | None = None, dense: bool = False
) -> Ball | None:
    """The ball to search, or None where its radius is 0; with `dense`, labels are one a pixel.

    Raises:
        ValueError: shapes, types or a radius that do not make sense.
    """
    if pixels.ndim != 4 or not pixels.is_floating_point():
        raise ValueError(
            f"pixels must be a float tensor (N, C, H, W) in [0, 1], got {pixels.dtype} of shape {tuple(pixels.shape)}."
        )
    if dense:
        shape, fits = f"({len(pixels)}, H, W), one a pixel", labels.ndim == 3 and not labels.is_floating_point()
    elif labels.ndim == 2:
        shape, fits = f"({len(pixels)},), or shares of classes ({len(pixels)}, K)", labels.is_floating_point()
    else:
        shape, fits = f"({len(pixels)},)", labels.ndim == 1 and not labels.is_floating_point()
    if not fits or len(labels) != len(pixels):
        raise ValueError(
            f"labels must be class indices of shape {shape}, got {labels.dtype} of shape {tuple(labels.shape)}."
        )
    if isinstance(eps, Tensor):
        if eps.shape != pixels.shape[:1]:
            raise ValueError(f"eps must be a number or one per image, ({len(pixels)},); got shape {tuple(eps.shape)}.")
    else:
        eps = ThreatModel(threat_model.norm, threat_model.eps if eps is None else eps).eps
        if eps == 0:
            return None
    return threat_model.ball(pixels.detach().float(), eps)


def as_result(point: Point, loss: str) -> AttackResult:
    return AttackResult(point.x, point.fooled, get_loss(loss).value(point.loss), point.predictions)
