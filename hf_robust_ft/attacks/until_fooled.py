"""APGD that stops attacking an image once it is fooled: what an evaluation needs, at a fraction of the cost."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hf_robust_ft.attacks.apgd import APGD, AttackResult, LogitsFn, as_result, checked_ball
from hf_robust_ft.attacks.apgd_run import FIRST_SCALE, ApgdRun, Point, evaluate_point, keep_better
from hf_robust_ft.attacks.losses import get_loss
from hf_robust_ft.attacks.sifted_targets import SiftedTargets
from hf_robust_ft.attacks.step_rules import take_rows
from hf_robust_ft.attacks.threat_model import ThreatModel


def attack_until_fooled(
    attack: APGD,
    logits_fn: LogitsFn,
    pixels: Tensor,
    labels: Tensor,
    threat_model: ThreatModel,
    *,
    eps: float | Tensor | None = None,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
    clean: Point | None = None,
) -> AttackResult:
    """As `attack(...)`, but each image leaves the batch at the first misclassified point found for it.

    The same images are fooled (up to the rounding of another batch size); their points are the first, not the worst,
    of each search. It waits for the device at every step, so it belongs in evaluation, not in training.

    Args:
        attack: the settings; restarts and target classes are tried on the images still standing.
        logits_fn, pixels, labels, threat_model, eps, start, generator: as in `apgd`.
        clean: what `evaluate_images` found at `pixels`, whose gradients serve the first step at every eps.
    """
    if get_loss(attack.loss).dense:
        raise ValueError(
            f"The loss {attack.loss!r} is of one label a pixel, of which more can always go wrong: call the attack "
            "itself, which searches to the end."
        )
    ball = checked_ball(pixels, labels, threat_model, eps)
    if ball is None:
        return attack(logits_fn, pixels, labels, threat_model, eps=0.0)
    attack.check_start(start)
    attack = replace(attack, select="fooled")
    best: Point | None = None
    standing = torch.arange(len(labels), device=labels.device)
    from_the_image = start is None and not attack.random_start
    for x, targets in attack.starts(logits_fn, ball, labels, start, generator):
        rows = None if targets is None else targets[standing]
        first = take_rows(clean, standing) if clean is not None and from_the_image and rows is None else None
        run = ApgdRun(
            attack, logits_fn, ball.rows(standing), labels[standing], x[standing], rows, start is not None, first
        )
        best = _search(run, standing, best)
        standing = (~best.fooled).nonzero()[:, 0]
        if len(standing) == 0:
            break
    return as_result(best, attack.loss)


@dataclass(frozen=True)
class FollowUp(SiftedTargets):
    """Sifted targets from where as many steps on cross-entropy lead, and of the classes that are likeliest there.

    From there it finds examples that it misses from the image itself.

    Raises:
        ValueError: as `SiftedTargets`; `larger_eps`, which would lead away again.
    """

    def __post_init__(self):
        super().__post_init__()
        if self.larger_eps:
            raise ValueError("The larger balls would lead away from where cross-entropy leads: leave larger_eps=False.")

    def __str__(self) -> str:
        return super().__str__().replace("clean start", "from where cross-entropy leads")

    def passes(self, num_classes: int) -> tuple[int, int]:
        gradients, forwards = super().passes(num_classes)
        return gradients + self.steps, forwards + 1

    def until_fooled(
        self, logits_fn: LogitsFn, pixels: Tensor, labels: Tensor, threat_model: ThreatModel, *, eps: Tensor, **options
    ) -> AttackResult:
        """As `attack_until_fooled(self, ...)`, for `steps` gradients more an image."""
        first = APGD(steps=self.steps, random_start=False, select="fooled")
        start = attack_until_fooled(first, logits_fn, pixels, labels, threat_model, eps=eps).adversarial
        return attack_until_fooled(self, logits_fn, pixels, labels, threat_model, eps=eps, start=start, **options)


def evaluate_images(attack: APGD, logits_fn: LogitsFn, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Point | None]:
    """Clean predictions (N,), and the point to hand on to `attack_until_fooled` if the attack starts there.

    One gradient costs three forwards, but every attack of the images begins with this one.
    """
    loss = get_loss(attack.loss)
    if attack.random_start or loss.targeted:
        with torch.no_grad():
            return logits_fn(pixels).argmax(1), None
    scale = torch.full((len(pixels),), FIRST_SCALE, device=pixels.device)
    point = evaluate_point(logits_fn, pixels, labels, loss, scale=scale)
    return point.predictions, point


def _search(run: ApgdRun, standing: Tensor, best: Point | None) -> Point:
    """Step until every image is fooled or the steps are spent; enter what was found in `best` (N rows)."""
    rows = standing
    if best is None:
        best = run.result
    while True:
        best = _enter(best, rows, run.result)
        left = (~run.result.fooled).nonzero()[:, 0]
        if run.steps_done == run.config.steps or len(left) == 0:
            return best
        size = batch_size_for(len(left))
        if size < len(rows):
            kept = torch.cat([left, run.result.fooled.nonzero()[: size - len(left), 0]])
            rows = rows[kept]
            run.keep(kept)
        run.step()


def batch_size_for(count: int) -> int:
    """The size to attack `count` images at, filled up with images that are done.

    Every new size costs a library's set-up (oneDNN's primitives, cuDNN's choice of algorithm, compilation): tens of
    milliseconds, as much as the few images that leave would save.

    >>> [batch_size_for(count) for count in (1, 3, 8, 9, 33, 90, 238)]
    [1, 4, 8, 12, 36, 96, 240]
    """
    if count <= 8:
        return 1 << (count - 1).bit_length()
    step = max(4, 1 << (count.bit_length() - 4))
    return -(-count // step) * step


def _enter(best: Point, rows: Tensor, found: Point) -> Point:
    old = Point(best.x[rows], best.loss[rows], best.fooled[rows], best.predictions[rows])
    new = keep_better(old, found, ~old.fooled & found.is_better_than(old, "fooled"))
    return Point(
        best.x.index_copy(0, rows, new.x),
        best.loss.index_copy(0, rows, new.loss),
        best.fooled.index_copy(0, rows, new.fooled),
        best.predictions.index_copy(0, rows, new.predictions),
    )
