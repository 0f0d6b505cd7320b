"""APGD as one graph: `torch.compile(fullgraph=True)` over model, gradients and step rules together."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from hf_robust_ft.attacks.apgd import APGD, AttackResult, LogitsFn, as_result, checked_ball, single_run
from hf_robust_ft.attacks.apgd_run import Point, keep_better
from hf_robust_ft.attacks.losses import get_loss
from hf_robust_ft.attacks.threat_model import ThreatModel


def compile_attack(
    attack: APGD, logits_fn: LogitsFn, threat_model: ThreatModel, **compile_options: Any
) -> Callable[..., AttackResult]:
    """The attack on one model as one compiled graph per batch shape.

    Compiling takes minutes and pays off over many batches of one shape. Another eps is no reason to compile again:
    the graph takes one per image. Hold the model in `attack_mode` around each call, as for `apgd`.

    Args:
        attack: the settings; each restart and target class is one call of the graph.
        logits_fn: pixels (N, C, H, W) in [0, 1] -> logits (N, K).
        threat_model: its norm becomes part of the graph; its eps is the default of the call.
        compile_options: for `torch.compile`, e.g. `mode` or `backend`.

    Returns:
        `(pixels, labels, *, eps=None, generator=None) -> AttackResult`, as `APGD.__call__`.
    """

    import torch._dynamo  # 1 s, which only those who compile should pay

    def run(pixels: Tensor, labels: Tensor, eps: Tensor, x: Tensor, targets: Tensor | None) -> Point:
        return single_run(attack, logits_fn, threat_model.ball(pixels, eps), labels, x, targets)

    attack.check_start(None)
    graph = torch.compile(run, fullgraph=True, **compile_options)

    def call(
        pixels: Tensor,
        labels: Tensor,
        *,
        eps: float | Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> AttackResult:
        ball = checked_ball(pixels, labels, threat_model, eps, dense=get_loss(attack.loss).dense)
        if ball is None:
            return attack(logits_fn, pixels, labels, threat_model, eps=0.0)
        radii = ball.eps.flatten().expand(len(pixels)).contiguous()
        best = None
        # Dynamo leaves `torch.autograd.grad` out of its graphs unless told otherwise.
        with torch._dynamo.config.patch(trace_autograd_ops=True):
            for x, targets in attack.starts(logits_fn, ball, labels, generator=generator):
                found = graph(ball.center, labels, radii, x, targets)
                best = found if best is None else keep_better(best, found, found.is_better_than(best, attack.select))
        return as_result(best, attack.loss)

    return call
