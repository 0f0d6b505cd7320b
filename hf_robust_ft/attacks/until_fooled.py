"""APGD that stops attacking an image once it is fooled: what an evaluation needs, at a fraction of the cost."""

from dataclasses import replace

import torch
from torch import Tensor

from hf_robust_ft.attacks.apgd import APGD, AttackResult, LogitsFn, as_result, checked_ball
from hf_robust_ft.attacks.run import ApgdRun, Point, keep_better
from hf_robust_ft.threat_models import ThreatModel


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
) -> AttackResult:
    """As `attack(...)`, but each image leaves the batch at the first misclassified point found for it.

    The same images are fooled (up to the rounding of another batch size); their points are the first, not the worst,
    of each search. It waits for the device at every step, so it belongs in evaluation, not in training.

    Args:
        attack: the settings; restarts and target classes are tried on the images still standing.
        logits_fn, pixels, labels, threat_model, eps, start, generator: as in `apgd`.
    """
    ball = checked_ball(pixels, labels, threat_model, eps)
    if ball is None:
        return attack(logits_fn, pixels, labels, threat_model, eps=0.0)
    attack = replace(attack, select="fooled")
    best: Point | None = None
    standing = torch.arange(len(labels), device=labels.device)
    for x, targets in attack.starts(logits_fn, ball, labels, start, generator):
        rows = None if targets is None else targets[standing]
        run = ApgdRun(attack, logits_fn, ball.rows(standing), labels[standing], x[standing], rows, start is not None)
        best = _search(run, standing, best)
        standing = (~best.fooled).nonzero()[:, 0]
        if len(standing) == 0:
            break
    return as_result(best, attack.loss)


def _search(run: ApgdRun, standing: Tensor, best: Point | None) -> Point:
    """Step until every image is fooled or the steps are spent; enter what was found in `best` (N rows)."""
    rows = standing
    if best is None:
        best = Point(run.current.x, run.current.loss, run.current.fooled, run.current.predictions)
    while True:
        best = _enter(best, rows, run.result)
        left = (~run.result.fooled).nonzero()[:, 0]
        if run.steps_done == run.config.steps or len(left) == 0:
            return best
        if len(left) < len(rows):
            rows = rows[left]
            run.keep(left)
        run.step()


def _enter(best: Point, rows: Tensor, found: Point) -> Point:
    old = Point(best.x[rows], best.loss[rows], best.fooled[rows], best.predictions[rows])
    new = keep_better(old, found, found.is_better_than(old, "fooled"))
    return Point(
        best.x.index_copy(0, rows, new.x),
        best.loss.index_copy(0, rows, new.loss),
        best.fooled.index_copy(0, rows, new.fooled),
        best.predictions.index_copy(0, rows, new.predictions),
    )
