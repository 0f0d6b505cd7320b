"""The smallest budget that fools each image, as far as attacks can tell: an upper bound per image.

It costs at most 0.4 of the naive grid's forwards (the guide on measuring; a grid of 8 points or more):

1. an attack at 2 eps_g, which few images withstand, and soon fools the others;
2. on those a descent: gradient steps on a ball whose radius is where a straight way to the boundary would end. It gets
   more images below eps_g than attacks at eps_g do, targeted ones included;
3. what is still beyond eps_g is forgotten;
4. the evaluation's attack from the clean image at the next point of the grid below what was found (at eps_g where
   nothing was), and below that until it fails (on a fine grid several times in a row). Under Linf and L2 no image lay
   above what attacking every point finds, under L1 up to 3 of 100. To be sure of it, attack every point:
   an attack may miss at larger budgets what it finds at a smaller one;
5. shrinking towards the image, by forwards alone;
6. a second descent with what is then left of 0.39 of the grid, at most twice as long as the first. All images of the
   batch get as many steps of it, so here, and here alone, the bound of one depends on the others.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hf_robust_ft.attacks.apgd import APGD, LogitsFn
from hf_robust_ft.attacks.apgd_run import FIRST_SCALE, Point, evaluate_point, with_usable_gradient
from hf_robust_ft.attacks.balls import Ball
from hf_robust_ft.attacks.losses import MARGIN
from hf_robust_ft.attacks.pass_meter import FORWARDS_PER_GRADIENT, CountedForwards
from hf_robust_ft.attacks.step_rules import per_image, step_rule, take_rows
from hf_robust_ft.attacks.threat_model import ThreatModel
from hf_robust_ft.attacks.until_fooled import attack_until_fooled, evaluate_images

WIDENING = 2  # the ball that the descent begins in, in eps_g
DESCENT_SHARE = 0.2  # the first descent's steps, as a share of the steps of the attacks at all points of the grid
BUDGET = 0.39  # of the grid's forwards. Another descent of fixed length would cost 0.44 where every image falls easily
COARSEST = 8  # points; on a coarser grid the descent is no shorter
STEP_SIZE = 0.7  # of the descent, in radii, falling to a tenth of it
FAILING_SHARE = 1 / 8  # of the grid's points, and at least one: failures of (4) in a row until an image is left alone
FIRST_SHRINKS, LAST_SHRINKS = 1, 1  # halvings of the way between an image and its example
MOST_CHANGE = 0.5  # of the ball's radius per step of the descent, falling to a tenth of it
LEAST_CHANGE = 0.1  # likewise, as a share of the most


@dataclass(frozen=True)
class MinimumNormResult:
    """What was found, per image.

    Attributes:
        adversarial: (N, C, H, W), the misclassified point nearest to each image; the image itself where there is none.
        eps: (N,) float64, its distance; 0 for images misclassified as they are, infinite where nothing was found.
        predictions: (N,) int64, the class predicted there.
    """

    adversarial: Tensor
    eps: Tensor
    predictions: Tensor


def smallest_fooling_eps(
    logits_fn: LogitsFn,
    pixels: Tensor,
    labels: Tensor,
    threat_model: ThreatModel,
    *,
    epsilons: Sequence[float],
    attack: APGD,
    generator: torch.Generator | None = None,
) -> MinimumNormResult:
    """Bound the smallest eps in [0, eps_g] that fools each image from above.

    Args:
        logits_fn, pixels, labels, threat_model: as in `apgd`; eps_g is the threat model's.
        epsilons: increasing from 0 to eps_g, the points at which the bound is made sure of (step 4 above).
        attack: what an image must withstand; its steps set the cost of everything else.
        generator: of the attack's random starts, where it has any.
    """
    counted = CountedForwards(logits_fn)
    predictions, clean = evaluate_images(attack, counted, pixels, labels)
    found = _Found(counted, threat_model.ball(pixels), labels, predictions)
    if threat_model.eps > 0:
        points = len(epsilons) - 1
        search = _Search(found, threat_model, attack, generator, clean)
        # The ball is larger already: from one larger still, the descent would begin further off.
        replace(search, attack=replace(attack, larger_eps=False)).attack_at(found.standing, _widened(threat_model))
        found.shrink(FIRST_SHRINKS)
        first = max(1, round(DESCENT_SHARE * attack.steps * max(points, COARSEST)))
        _descend(found, first)
        found.forget_beyond(threat_model.eps)
        search.attack_below(epsilons, max(1, round(FAILING_SHARE * points)))
        found.shrink(LAST_SHRINKS)
        whole_grid = len(pixels) * (1 + points * (FORWARDS_PER_GRADIENT * attack.steps + 1))
        left = (BUDGET * whole_grid - counted.count) / max(1, len(found.attacked))
        _descend(found, min(2 * first, int((left - 1) / FORWARDS_PER_GRADIENT)))
    return MinimumNormResult(found.x, found.eps, found.predictions)


def _widened(threat_model: ThreatModel) -> float:
    eps = WIDENING * threat_model.eps
    return min(eps, 1.0) if threat_model.norm == "Linf" else eps


class _Found:
    """The nearest misclassified point of each image so far."""

    def __init__(self, logits_fn: LogitsFn, ball: Ball, labels: Tensor, predictions: Tensor):
        self.logits_fn, self.ball, self.labels = logits_fn, ball, labels
        self.x, self.predictions = ball.center, predictions
        self.eps = torch.where(predictions == labels, math.inf, 0.0).double()

    @property
    def standing(self) -> Tensor:
        """Indices of the images that nothing fooled."""
        return self.eps.isinf().nonzero()[:, 0]

    @property
    def attacked(self) -> Tensor:
        """Indices of the images that are classified correctly and were fooled."""
        return (self.eps.isfinite() & (self.eps > 0)).nonzero()[:, 0]

    def enter(self, rows: Tensor, x: Tensor, predictions: Tensor) -> Tensor:
        """Note the points `x` of the images `rows` where they are misclassified and nearer; tell which are wrong."""
        wrong = predictions != self.labels[rows]
        distance = self.ball.rows(rows).distance(x)
        better = wrong & (distance < self.eps[rows])
        nearer = rows[better]
        self.x = self.x.index_copy(0, nearer, x[better])
        self.eps = self.eps.index_copy(0, nearer, distance[better])
        self.predictions = self.predictions.index_copy(0, nearer, predictions[better])
        return wrong

    def try_points(self, rows: Tensor, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.enter(rows, x, self.logits_fn(x).argmax(1))

    def forget_beyond(self, eps: float) -> None:
        far = self.eps > eps
        self.x = torch.where(per_image(far, self.x), self.ball.center, self.x)
        self.eps = torch.where(far, math.inf, self.eps)
        self.predictions = torch.where(far, self.labels, self.predictions)

    def shrink(self, halvings: int) -> None:
        """Bisect the way from each image to its example, which a smaller part of may fool as well."""
        rows = self.attacked
        if len(rows) == 0:
            return
        center, change = self.ball.center[rows], self.x[rows] - self.ball.center[rows]
        low, high = torch.zeros_like(change[:, 0, 0, 0]), torch.ones_like(change[:, 0, 0, 0])
        for _ in range(halvings):
            middle = (low + high) / 2
            wrong = self.try_points(rows, center + per_image(middle, change) * change)
            low, high = torch.where(wrong, low, middle), torch.where(wrong, middle, high)


@dataclass
class _Search:
    """The evaluation's attack, on some of the images."""

    found: _Found
    threat_model: ThreatModel
    attack: APGD
    generator: torch.Generator | None
    clean: Point | None

    def attack_at(self, rows: Tensor, eps: float | Tensor) -> Tensor:
        """From the images `rows` themselves; tell which were fooled."""
        if len(rows) == 0:
            return torch.zeros_like(rows, dtype=torch.bool)
        result = attack_until_fooled(
            self.attack,
            self.found.logits_fn,
            self.found.ball.center[rows],
            self.found.labels[rows],
            self.threat_model,
            eps=eps,
            generator=self.generator,
            clean=None if self.clean is None else take_rows(self.clean, rows),
        )
        self.found.enter(rows, result.adversarial, result.predictions)
        return result.fooled

    def attack_below(self, epsilons: Sequence[float], allowed: int) -> None:
        """Attack at the points of the grid below what was found, until that fails as often in a row as is allowed."""
        grid = torch.tensor(list(epsilons), dtype=torch.float64, device=self.found.eps.device)
        rows = (self.found.eps > 0).nonzero()[:, 0]
        failures = torch.zeros_like(rows)
        while True:
            # The smallest point of the grid that fools each image; the points before it are those to try.
            index = torch.searchsorted(grid, self.found.eps[rows]) - failures
            left = (index > 1) & (failures < allowed)
            rows, index, failures = rows[left], index[left], failures[left]
            if len(rows) == 0:
                return
            fooled = self.attack_at(rows, grid[index - 1])
            failures = torch.where(fooled, 0, failures + 1)


def _descend(found: _Found, steps: int) -> None:
    """Steps along the surface of a ball around each image that follows the decision boundary inwards."""
    rows = found.attacked
    if len(rows) == 0 or steps < 1:
        return
    center, labels = found.ball.center[rows], found.labels[rows]
    make_ball = type(found.ball)
    scale = torch.full((len(rows),), FIRST_SCALE, device=center.device)
    radius = found.eps[rows] * (1 - LEAST_CHANGE)
    ball = make_ball(center, radius)
    x = ball.project(found.x[rows])
    rule = step_rule(ball).begin(ball, x, torch.zeros_like(scale), steps, warm=True)
    for step in range(steps):
        falling = 0.1 + 0.9 * (1 + math.cos(math.pi * step / steps)) / 2
        point = evaluate_point(found.logits_fn, x, labels, MARGIN, scale=scale)
        found.enter(rows, x, point.predictions)
        to_boundary = _straight_way(ball, replace(point, gradient=point.gradient / per_image(scale, x)))
        point, scale = with_usable_gradient(point, scale)
        most = falling * MOST_CHANGE
        change = (to_boundary / radius).nan_to_num(nan=most).clamp(LEAST_CHANGE * most, most)
        nearest = found.eps[rows]
        smaller = torch.minimum(radius, nearest) * (1 - change)
        larger = torch.minimum(radius * (1 + change), nearest * (1 - LEAST_CHANGE * most))
        radius = torch.where(point.fooled, smaller, larger)
        ball = make_ball(center, radius)
        rule.follow(ball, x)
        rule.step_size = falling * STEP_SIZE * ball.eps
        x = rule.propose(ball, x, point.gradient, None)
    found.try_points(rows, x)


def _straight_way(ball: Ball, point: Point) -> Tensor:
    """How far the decision boundary is from each point, were the model linear: (N,) float64, NaN if nobody can tell."""
    steepest = ball.ascent_step(torch.zeros_like(point.x), point.gradient, torch.ones_like(ball.eps))
    slope = (point.gradient * steepest).flatten(1).sum(1).double()
    return point.loss.abs() / slope
