"""How an APGD run moves, and how it adapts its steps: halving (Linf, L2) or sparse (L1).

A rule holds one entry per image in every tensor, and decides with `torch.where` alone.
"""

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from hf_robust_ft.attacks.balls import Ball, L1Ball

MOMENTUM = 0.75
FIRST_STEP, WARM_STEP = 2.0, 0.5  # in eps; a run that goes on from an earlier find must not leave it at once
RISING_SHARE = 0.75  # a step size is kept while the loss rises in more than this share of a window's steps

State = TypeVar("State")


def take_rows(state: State, index: Tensor) -> State:
    """The same dataclass for some of the images only."""
    tensors = {entry.name: getattr(state, entry.name) for entry in fields(state)}
    return replace(state, **{name: value[index] for name, value in tensors.items() if isinstance(value, Tensor)})


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """(N,) -> (N, 1, 1, 1), to be used with images."""
    return values.view(-1, *[1] * (like.ndim - 1))


@dataclass
class HalvingSteps:
    """APGD for Linf and L2 (arXiv 2003.01690): momentum, and step sizes halved where a window brought too little.

    A halved image goes back to its best point. The first step is 2 eps long, eps / 2 in a run that goes on from an
    earlier find.
    """

    step_size: Tensor
    rises: Tensor
    loss_at_checkpoint: Tensor
    halved_before: Tensor
    window: int
    shortest: int
    shrink: int
    steps_in_window: int = 0

    @classmethod
    def begin(cls, ball: Ball, start: Tensor, loss: Tensor, steps: int, warm: bool) -> "HalvingSteps":
        window, shortest, shrink = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
        return cls(
            step_size=((WARM_STEP if warm else FIRST_STEP) * ball.eps).expand(len(start), *[1] * (start.ndim - 1)),
            rises=torch.zeros_like(loss),
            loss_at_checkpoint=loss,
            halved_before=torch.ones_like(loss, dtype=torch.bool),
            window=window,
            shortest=shortest,
            shrink=shrink,
        )

    def propose(self, ball: Ball, x: Tensor, gradient: Tensor, previous_x: Tensor | None) -> Tensor:
        plain = ball.project(ball.ascent_step(x, gradient, self.step_size))
        if previous_x is None:
            return plain
        return ball.project(torch.lerp(x, plain, MOMENTUM).add_(x - previous_x, alpha=1 - MOMENTUM))

    def follow(self, ball: Ball, x: Tensor) -> None:
        """Nothing here depends on where a search stands."""

    def adapt(self, ball: Ball, rose: Tensor, best_x: Tensor, best_loss: Tensor) -> Tensor | None:
        """Note whether each loss rose; at a checkpoint adapt the steps, and tell which images go back to their best."""
        self.rises = self.rises + rose
        self.steps_in_window += 1
        if self.steps_in_window < self.window:
            return None
        oscillates = self.rises <= RISING_SHARE * self.window
        stalls = ~self.halved_before & (self.loss_at_checkpoint >= best_loss)
        halve = oscillates | stalls
        self.step_size = torch.where(per_image(halve, self.step_size), self.step_size / 2, self.step_size)
        self.loss_at_checkpoint, self.halved_before = best_loss, halve
        self.rises = torch.zeros_like(self.rises)
        self.window, self.steps_in_window = max(self.window - self.shrink, self.shortest), 0
        return halve


FIRST_SHARE = 0.2
SPARSER = 1.5  # the next steps change this many times fewer values than the best point so far does
SETTLED = 0.95  # support shrunk by less than this factor since the last checkpoint: shorten the steps instead
SLOWEST = 0.1  # smallest step size, in eps


@dataclass
class SparseSteps:
    """APGD for L1 (Croce & Hein 2021, arXiv 2103.01208): steps on the largest gradient entries, without momentum.

    Their share follows the support of the best point. While that support shrinks, an image goes back to its best
    point with the full step size, eps; once it has settled, the step size falls by 1.5 at a time.
    """

    step_size: Tensor
    share: Tensor
    support: Tensor
    eps: Tensor
    window: int
    steps_in_window: int = 0

    @classmethod
    def begin(cls, ball: L1Ball, start: Tensor, loss: Tensor, steps: int, warm: bool) -> "SparseSteps":
        count = start[0].numel()
        eps = ball.eps.expand(len(start), *[1] * (start.ndim - 1))
        support = _support(ball, start) if warm else torch.full_like(loss, count)
        share = support / count / SPARSER if warm else torch.full_like(loss, FIRST_SHARE)
        return cls(step_size=eps, share=share, support=support, eps=eps, window=max(int(0.04 * steps), 1))

    def propose(self, ball: L1Ball, x: Tensor, gradient: Tensor, previous_x: Tensor | None) -> Tensor:
        return ball.project(ball.ascent_step(x, gradient, self.step_size, self.share))

    def follow(self, ball: L1Ball, x: Tensor) -> None:
        """Take the share of the pixels to change next from those that differ at `x`."""
        self.support = _support(ball, x)
        self.share = self.support / x[0].numel() / SPARSER

    def adapt(self, ball: L1Ball, rose: Tensor, best_x: Tensor, best_loss: Tensor) -> Tensor | None:
        self.steps_in_window += 1
        if self.steps_in_window < self.window:
            return None
        self.steps_in_window = 0
        support = _support(ball, best_x)
        shrinks = support < SETTLED * self.support
        shorter = torch.maximum(self.step_size / SPARSER, SLOWEST * self.eps)
        self.step_size = torch.where(per_image(shrinks, shorter), self.eps, shorter)
        self.follow(ball, best_x)
        return shrinks


def _support(ball: Ball, x: Tensor) -> Tensor:
    """How many pixel values differ from the image, (N,) float32."""
    return (x != ball.center).flatten(1).sum(1).to(x.dtype)


def step_rule(ball: Ball) -> type[HalvingSteps] | type[SparseSteps]:
    return SparseSteps if isinstance(ball, L1Ball) else HalvingSteps
