"""Square attack (Andriushchenko et al. 2020, arXiv 1912.00049): a random search that asks for logits only.

It sees through whatever a model does to its gradients, and needs many more queries than they would.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_robust_ft.attacks.apgd import AttackResult, LogitsFn, checked_ball
from hf_robust_ft.attacks.balls import Ball, L1Ball, LinfBall
from hf_robust_ft.attacks.threat_model import ThreatModel

# Of 10,000 queries, those after which the share of the image that a square covers is halved; scaled where there are
# fewer.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
FIRST_SHARE = 0.8


@dataclass(frozen=True)
class Square:
    """The settings of the attack; call it as `Square(queries=300)(logits_fn, pixels, labels, threat_model)`.

    Other than in the paper every image is tried with the same squares, so what becomes of it depends on the seed and
    not on the others in its batch, and a change that leaves the margin as it is is kept: on a plateau the search
    wanders.

    Raises:
        ValueError: a number of queries below 1.
    """

    queries: int = 300

    def __post_init__(self):
        if not isinstance(self.queries, int) or isinstance(self.queries, bool) or self.queries < 1:
            raise ValueError(f"Square needs queries to be a whole number of at least 1, got {self.queries!r}.")

    def __str__(self) -> str:
        return f"Square, {self.queries} queries"

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
        """Attack `pixels` (N, C, H, W) in [0, 1]: `queries` + 1 forwards an image, fewer where it is fooled earlier.

        Args:
            eps: in place of the threat model's, (N,) for one an image.
            generator: source of the squares; without one, a fresh generator at torch's default seed.

        Returns:
            An `AttackResult`; its loss is the margin of the likeliest wrong class over the right one.

        Raises:
            ValueError: shapes, types or an eps that do not make sense.
        """
        ball = checked_ball(pixels, labels, threat_model, eps)
        generator = torch.Generator(pixels.device) if generator is None else generator
        with torch.no_grad():
            found = pixels.detach().float().clone()
            margin, predictions = _margin(logits_fn(found), labels)
            rows = (predictions == labels).nonzero()[:, 0]
            for query in range(0 if ball is None else self.queries):
                if not len(rows):
                    break
                proposed = self._propose(query, ball.rows(rows), found[rows], generator)
                new_margin, new_predictions = _margin(logits_fn(proposed), labels[rows])
                better = (new_margin >= margin[rows]) | (new_predictions != labels[rows])
                if query == 0:  # the stripes hold whatever they do, as squares change what is there
                    better[:] = True
                changed = rows[better]
                found[changed], margin[changed] = proposed[better], new_margin[better]
                predictions[changed] = new_predictions[better]
                rows = rows[predictions[rows] == labels[rows]]
        return AttackResult(found, predictions != labels, margin, predictions)

    def _propose(self, query: int, ball: Ball, x: Tensor, generator: torch.Generator) -> Tensor:
        """The next point of each image to ask about, inside the ball: stripes, then `x` with a square."""
        channels, height, width = x.shape[1:]
        if query == 0:
            return ball.project(ball.center + ball.eps * _signs((1, channels, 1, width), x, generator))
        share = FIRST_SHARE / 2 ** sum(query * 10_000 / self.queries > limit for limit in HALVINGS)
        side = round(math.sqrt(share * height * width))
        side = max(1 if isinstance(ball, LinfBall) else min(3, height, width), min(side, height, width))
        square, freed = (_somewhere(side, height, width, generator) for _ in range(2))
        signs = _signs((1, channels, 1, 1), x, generator)
        change = x - ball.center
        if isinstance(ball, LinfBall):
            change[..., square[0], square[1]] = (ball.eps * signs).expand(len(x), -1, side, side)
        else:
            _move_budget(change, ball, square, freed, signs)
        return ball.project(ball.center + change)


def _move_budget(change: Tensor, ball: Ball, square: tuple, freed: tuple, signs: Tensor) -> None:
    """Give what the square `freed` held of the budget, and what nobody held, to a bump inside `square`; in place."""
    power = 1 if isinstance(ball, L1Ball) else 2
    inside = change[..., square[0], square[1]].clone()
    change[..., freed[0], freed[1]] = 0
    change[..., square[0], square[1]] = 0
    left = (ball.eps**power - _norm(change, power) ** power).clamp(min=0) ** (1 / power)
    side = inside.shape[-1]
    ramp = 1 - (torch.arange(side, device=change.device) - (side - 1) / 2).abs() / side
    bump = signs * ramp[:, None] * ramp
    inside = inside / _norm(inside, power).clamp(min=1e-30) + bump / _norm(bump, power)
    change[..., square[0], square[1]] = left * inside / _norm(inside, power).clamp(min=1e-30)


def _norm(values: Tensor, power: int) -> Tensor:
    """Per image, (N, 1, 1, 1)."""
    return values.flatten(1).norm(power, 1).view(-1, 1, 1, 1)


def _signs(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randint(0, 2, shape, generator=generator, device=generator.device)
    return (2 * drawn - 1).to(like.device, like.dtype)


def _somewhere(side: int, height: int, width: int, generator: torch.Generator) -> tuple[slice, slice]:
    """The rows and columns of a square."""
    draw = lambda size: int(torch.randint(size - side + 1, (), generator=generator, device=generator.device))  # noqa: E731
    top, left = draw(height), draw(width)
    return slice(top, top + side), slice(left, left + side)


def _margin(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """How far the likeliest wrong class lies above the right one, (N,), and the class predicted, (N,)."""
    predictions, logits = logits.argmax(1), logits.float()
    is_label = labels[:, None] == torch.arange(logits.shape[1], device=logits.device)
    others = logits.masked_fill(is_label, -torch.inf).amax(1)
    return others - logits.gather(1, labels[:, None])[:, 0], predictions
