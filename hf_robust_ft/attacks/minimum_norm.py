"""The smallest budget that fools each image, as far as attacks can tell: an upper bound per image.

An image costs about as much as two attacks of n steps, 0.16 to 0.23 of the naive grid's time at 8/255 (README):

1. an attack at eps_g (n steps, fewer once it is fooled); under L2 and L1 also at shares of it, since ten steps there
   often find at a smaller budget what they miss at a larger one;
2. on images still standing, a targeted attack that goes on from where the first one ended;
3. on fooled images, a descent: gradient steps in a ball that shrinks while the image stays fooled and grows while it
   does not, a bisection of the budget that every step of the search takes part in;
4. the attack of (1) from the clean image at the next point of the grid below what was found, and again below that
   until it fails (under L2 and L1, twice in a row): so the curve is nowhere above the one that attacks every point
   (where attacks that succeed at a budget also succeed at larger ones);
5. shrinking towards the image, by forwards alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_robust_ft.attacks.apgd import APGD, AttackResult, LogitsFn
from hf_robust_ft.attacks.run import FIRST_SCALE, Point, visit, with_usable_gradient
from hf_robust_ft.attacks.step_rules import per_image, step_rule, take_rows
from hf_robust_ft.attacks.until_fooled import attack_until_fooled, visit_images
from hf_robust_ft.losses import LOSSES
from hf_robust_ft.threat_models import Ball, ThreatModel

# Chosen on a quickstart and a flowers12 checkpoint, for a low curve at about a quarter of the naive grid's passes.
SMALLER_BUDGETS = {"L2": (0.75,), "L1": (0.75, 0.5)}  # shares of eps_g at which standing images are attacked as well
FAILURES = {"L2": 2, "L1": 2}  # of (4) in a row, until an image is left alone
REFINING_SHARE = 0.3  # steps of the targeted attack, as a share of the attack's
DESCENT_SHARE = 0.8  # steps of the descent, likewise
FIRST_SHRINKS, LAST_SHRINKS = 1, 1  # halvings of the way between an image and its example
RADIUS_CHANGE = 0.5  # of the ball per step of the descent, falling to a tenth of it
STEP_SIZE = 0.3  # of the descent, in radii, falling to a tenth of it


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
    predictions, clean = visit_images(attack, logits_fn, pixels, labels)
    found = _Found(logits_fn, threat_model.ball(pixels, threat_model.eps), labels, predictions)
    if threat_model.eps > 0:
        search = _Search(found, threat_model, attack, generator, clean)
        search.attack_standing()
        found.shrink(FIRST_SHRINKS)
        _descend(found, max(1, round(DESCENT_SHARE * attack.steps)))
        search.attack_below(epsilons)
        found.shrink(LAST_SHRINKS)
    return MinimumNormResult(found.x, found.eps, found.predictions)


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
        distance = self.ball.rows(rows).distance(x).double()
        better = wrong & (distance < self.eps[rows])
        nearer = rows[better]
        self.x = self.x.index_copy(0, nearer, x[better])
        self.eps = self.eps.index_copy(0, nearer, distance[better])
        self.predictions = self.predictions.index_copy(0, nearer, predictions[better])
        return wrong

    def try_points(self, rows: Tensor, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.enter(rows, x, self.logits_fn(x).argmax(1))

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
    """The attack at a budget, on some of the images."""

    found: _Found
    threat_model: ThreatModel
    attack: APGD
    generator: torch.Generator | None
    clean: Point | None

    def attack_at(self, rows: Tensor, eps: float | Tensor) -> AttackResult:
        """From the images `rows` themselves."""
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
        return result

    def attack_standing(self) -> None:
        """Attack at eps_g what is classified correctly, and go on with a targeted attack where that fails."""
        found = self.found
        rows = found.standing
        if len(rows) == 0:
            return
        result = self.attack_at(rows, self.threat_model.eps)
        for share in SMALLER_BUDGETS.get(self.threat_model.norm, ()):
            if len(found.standing):
                self.attack_at(found.standing, share * self.threat_model.eps)
        left = found.eps[rows].isinf()
        rows, start = rows[left], result.adversarial[left]
        if len(rows) == 0:
            return
        with torch.no_grad():
            num_classes = found.logits_fn(start[:1]).shape[1]
        loss = "dlr_targeted" if num_classes >= LOSSES["dlr_targeted"].min_classes else "ce"
        steps = max(1, round(REFINING_SHARE * self.attack.steps))
        refining = APGD(steps=steps, loss=loss, random_start=False, num_targets=1)
        result = attack_until_fooled(
            refining, found.logits_fn, found.ball.center[rows], found.labels[rows], self.threat_model, start=start
        )
        found.enter(rows, result.adversarial, result.predictions)

    def attack_below(self, epsilons: Sequence[float]) -> None:
        """Attack fooled images at the points of the grid below what was found, until that fails often enough."""
        grid = torch.tensor(list(epsilons), dtype=torch.float64, device=self.found.eps.device)
        rows = self.found.attacked
        failures = torch.zeros_like(rows)
        while True:
            # The smallest point of the grid that fools each image; the points before it are those to try.
            index = torch.searchsorted(grid, self.found.eps[rows]) - failures
            left = (index > 1) & (failures < FAILURES.get(self.threat_model.norm, 1))
            rows, index, failures = rows[left], index[left], failures[left]
            if len(rows) == 0:
                return
            fooled = self.attack_at(rows, grid[index - 1]).fooled
            failures = torch.where(fooled, 0, failures + 1)


def _descend(found: _Found, steps: int) -> None:
    rows = found.attacked
    if len(rows) == 0:
        return
    center, labels, loss = found.ball.center[rows], found.labels[rows], LOSSES["ce"]
    make_ball = type(found.ball)
    scale = torch.full((len(rows),), FIRST_SCALE, device=center.device)
    radius = found.eps[rows] * (1 - RADIUS_CHANGE)
    ball = make_ball(center, radius)
    x = ball.project(found.x[rows])
    rule = step_rule(ball).begin(ball, x, torch.zeros_like(scale), steps, warm=True)
    for step in range(steps):
        falling = 0.1 + 0.9 * (1 + math.cos(math.pi * step / steps)) / 2
        point = visit(found.logits_fn, x, labels, loss, scale=scale)
        found.enter(rows, x, point.predictions)
        point, scale = with_usable_gradient(point, scale)
        smaller = torch.minimum(radius, found.eps[rows]) * (1 - falling * RADIUS_CHANGE)
        larger = torch.minimum(radius * (1 + falling * RADIUS_CHANGE), found.eps[rows] * (1 - 0.1 * RADIUS_CHANGE))
        radius = torch.where(point.fooled, smaller, larger)
        ball = make_ball(center, radius)
        rule.follow(ball, x)
        rule.step_size = falling * STEP_SIZE * ball.eps
        x = rule.propose(ball, x, point.gradient, None)
    found.try_points(rows, x)
