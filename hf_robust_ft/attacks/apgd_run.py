"""One APGD run, a step at a time, so that a caller may drop images between the steps."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hf_robust_ft.attacks.balls import Ball
from hf_robust_ft.attacks.cross_entropy import likeliest
from hf_robust_ft.attacks.dense_losses import most_are_wrong, right_pixels
from hf_robust_ft.attacks.larger_eps import eps_phases
from hf_robust_ft.attacks.losses import AttackLoss, get_loss
from hf_robust_ft.attacks.step_rules import per_image, step_rule, take_rows

# Powers of two, so that scaling changes no gradient's digits. Small ones would underflow in float16: GradScaler does
# not cover `autograd.grad`, and up to 100 % of the input gradients became zero.
FIRST_SCALE = 2.0**10
BACK_OFF = 2.0**-6  # on overflow
GROWTH = 2.0**5  # where a gradient is all zeros
LARGEST_SCALE = 2.0**15


@dataclass
class Point:
    """One point per image and what the model said of it; `loss` is what is compared, `gradient` None where not needed.

    The gradient is known up to a positive factor per image, which no step rule depends on. `usable` tells where it
    neither overflowed nor vanished in float16. Of one label a pixel, `predictions` are (N, H, W), `right` counts the
    right ones (N,) and `fooled` tells where they are less than half.
    """

    x: Tensor
    loss: Tensor
    fooled: Tensor
    predictions: Tensor
    gradient: Tensor | None = None
    usable: Tensor | None = None
    right: Tensor | None = None

    def is_better_than(self, other: "Point", select: str) -> Tensor:
        """(N,) bool: a higher loss, or first of all misclassified (fewest right pixels) where `select` is "fooled"."""
        higher = self.loss > other.loss
        if select == "loss":
            return higher
        if self.right is not None:
            return (self.right < other.right) | ((self.right == other.right) & higher)
        return (self.fooled & ~other.fooled) | ((self.fooled == other.fooled) & higher)


def keep_better(old: Point, new: Point, better: Tensor) -> Point:
    """`new` where `better` (N,), `old` elsewhere."""
    gradient = usable = None
    if old.gradient is not None and new.gradient is not None:
        gradient = torch.where(per_image(better, old.x), new.gradient, old.gradient)
        usable = torch.where(better, new.usable, old.usable)
    return Point(
        torch.where(per_image(better, old.x), new.x, old.x),
        torch.where(better, new.loss, old.loss),
        torch.where(better, new.fooled, old.fooled),
        torch.where(per_image(better, old.predictions), new.predictions, old.predictions),
        gradient,
        usable,
        None if old.right is None else torch.where(better, new.right, old.right),
    )


def evaluate_point(
    logits_fn: Callable[[Tensor], Tensor],
    x: Tensor,
    labels: Tensor,
    loss: AttackLoss,
    targets: Tensor | float | None = None,
    scale: Tensor | None = None,
) -> Point:
    """Evaluate the model at `x`; with a loss scale (N,), also the scaled gradient."""
    with torch.set_grad_enabled(scale is not None):
        x = x.detach().requires_grad_(scale is not None)
        logits = logits_fn(x)
        loss.check_logits(logits, labels)
        judged = logits_fn.features if loss.of_features else logits
        objective = loss.objective(judged, labels, targets)
        gradient = None if scale is None else torch.autograd.grad((objective * scale).sum(), x)[0]
    logits = logits.detach()
    predictions = logits.argmax(1)
    if not loss.dense:
        return Point(x.detach(), objective.detach(), predictions != likeliest(labels), predictions, gradient)
    compared = objective.detach() if loss.compared is None else loss.compared(logits, labels)
    wrong, right = most_are_wrong(predictions, labels), right_pixels(predictions, labels)
    return Point(x.detach(), compared, wrong, predictions, gradient, right=right)


def with_usable_gradient(point: Point, scale: Tensor) -> tuple[Point, Tensor]:
    """The point with `usable` noted, and the loss scales (N,) for the next one: other ones where it is not usable."""
    size = point.gradient.abs().sum(tuple(range(1, point.x.ndim)))
    finite, vanished = size.isfinite(), size == 0
    grown = (scale * GROWTH).clamp(max=LARGEST_SCALE)
    scale = torch.where(finite, torch.where(vanished, grown, scale), scale * BACK_OFF)
    # Pixels whose gradient overflowed stay where they are for this step.
    # A copy: where a model sums its input, autograd's gradient is one number in the place of all.
    gradient = point.gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return replace(point, gradient=gradient, usable=finite & ~vanished), scale


class ApgdRun:
    """The state of one run: where each image stands, and the best it has seen.

    In a phase with a larger eps, `best` lies in that phase's ball; `chosen` never leaves the ball that was asked for,
    but with one label a pixel, where it is of the phase at hand.

    Args:
        config: an `APGD`: its `steps`, `loss`, `select` and `larger_eps`.
        logits_fn: pixels -> logits.
        ball: what the result must lie in.
        labels: (N,), or (N, H, W) of one a pixel.
        start: (N, C, H, W), inside the first phase's ball; with `larger_eps`, the image itself or a random point.
        targets: (N,) classes to aim at, for a targeted loss; what to compare with (N, K), for one that does.
        warm: whether `start` is an earlier find (the sparse steps of L1 then begin with its support).
        first: what `evaluate_point` found at `start`, with gradients scaled by `FIRST_SCALE`; saves that visit.
    """

    def __init__(
        self,
        config: Any,
        logits_fn: Callable[[Tensor], Tensor],
        ball: Ball,
        labels: Tensor,
        start: Tensor,
        targets: Tensor | None = None,
        warm: bool = False,
        first: Point | None = None,
    ):
        self.config, self.logits_fn, self.ball = config, logits_fn, ball
        self.labels, self.targets, self.loss = labels, targets, get_loss(config.loss)
        self.scale = torch.full((len(start),), FIRST_SCALE, dtype=start.dtype, device=start.device)
        self.phases = eps_phases(config)
        self.steps_done = 0
        self.chosen: Point | None = None
        # A random start lies outside the ball: nothing is found yet.
        if len(self.phases) > 1 and config.random_start and not self.loss.dense:
            nothing = torch.full_like(self.scale, -torch.inf)
            self.chosen = Point(ball.center, nothing, torch.zeros_like(labels, dtype=torch.bool), labels)
        self._begin(start, warm, first)

    def _begin(self, start: Tensor, warm: bool, first: Point | None = None) -> None:
        """Begin the first of `phases` at `start`."""
        factor, steps = self.phases[0]
        self.phase_ball, self.steps_in_phase = self.ball.scaled(factor), 0
        if first is None:
            first = evaluate_point(self.logits_fn, start, self.labels, self.loss, self._aim, self.scale)
        self.current, self.scale = with_usable_gradient(first, self.scale)
        self.best, self.last_loss = self.current, self.current.loss
        self.previous_x: Tensor | None = None
        self.rule = step_rule(self.ball).begin(self.phase_ball, start, self.current.loss, steps, warm)
        self._choose()

    @property
    def result(self) -> Point:
        """The point that the configuration selects."""
        return self.chosen if self._chooses else self.best

    @property
    def _aim(self) -> Tensor | float | None:
        """What the objective is given beside logits and labels."""
        return self.steps_in_phase / self.phases[0].steps if self.loss.by_progress else self.targets

    @property
    def _chooses(self) -> bool:
        """Whether the result may be another point than `best`."""
        return self.config.select == "fooled" or self.config.larger_eps

    def step(self) -> None:
        """Move once. The last step of a phase evaluates its point without a gradient."""
        self.steps_done += 1
        self.steps_in_phase += 1
        is_last = self.steps_in_phase == self.phases[0].steps
        x = self.rule.propose(self.phase_ball, self.current.x, self.current.gradient, self.previous_x)
        self.previous_x = self.current.x
        # A point that went back to its best is compared with where it came from, as in SEA's own code. Where what is
        # climbed is not what is compared, the other way costs up to a point (benchmarks.dense_attack_parity); of one
        # label an image it made no difference.
        previous_loss = self.current.loss if self.loss.compared is None else self.last_loss
        self.current = replace(self.current, gradient=None)  # else one gradient more would be alive at the peak
        scale = None if is_last else self.scale
        self.current = evaluate_point(self.logits_fn, x, self.labels, self.loss, self._aim, scale)
        if not is_last:
            self.current, self.scale = with_usable_gradient(self.current, scale)
        self.best = keep_better(self.best, self.current, self.current.loss > self.best.loss)
        self._choose()
        if is_last:
            if len(self.phases) > 1:
                # Of one label a pixel as arXiv 2306.12941: on from the fewest right pixels, with steps as at first.
                found = self.result if self.loss.dense else self.best
                self.phases, self.chosen = self.phases[1:], None if self.loss.dense else self.chosen
                self._begin(self.ball.scaled(self.phases[0].factor).project(found.x), warm=not self.loss.dense)
            return
        # Before the first step the reference implementation has a loss of 0: the first step always counts as a rise of
        # cross-entropy, and of DLR only if it fools. With 10 steps that makes DLR stronger, by 7 points on digits.
        rose = self.current.loss > previous_loss if self.steps_in_phase > 1 else self.loss.value(self.current.loss) > 0
        self.last_loss = self.current.loss
        back = self.rule.adapt(self.phase_ball, rose, self.best.x, self.best.loss)
        if back is not None:
            # Without a gradient there it would be stuck: it stays, with one that has the scale in use now.
            self.current = keep_better(self.current, self.best, back & self.best.usable)

    def _choose(self) -> None:
        """Note the current point where it is to be selected over the earlier ones of the ball that was asked for."""
        if not self._chooses:
            return
        if self.chosen is None:
            self.chosen = replace(self.current, gradient=None, usable=None)
        elif self.loss.dense or self.phases[0].factor == 1:
            better = self.current.is_better_than(self.chosen, self.config.select)
            self.chosen = keep_better(self.chosen, self.current, better)

    def keep(self, index: Tensor) -> None:
        """Go on with some of the images only, given by their indices."""
        self.ball, self.phase_ball = self.ball.rows(index), self.phase_ball.rows(index)
        self.rule, self.current, self.best = (take_rows(s, index) for s in (self.rule, self.current, self.best))
        self.chosen = None if self.chosen is None else take_rows(self.chosen, index)
        self.labels, self.scale, self.last_loss = self.labels[index], self.scale[index], self.last_loss[index]
        self.previous_x = None if self.previous_x is None else self.previous_x[index]
        self.targets = None if self.targets is None else self.targets[index]
