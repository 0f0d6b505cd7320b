"""The trust checks of what a model answers, before any attack: always the same, and for each image by itself."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hf_robust_ft.attacks.apgd import LogitsFn
from hf_robust_ft.evaluation.trust_verdicts import TrustCheck, verdict

LARGEST_DIFFERENCE = 1e-4  # of two clean passes, over the range of the top two logits
# Of an image alone and in its batch, over the same: kernels for other batch sizes sum in another order (TF32 has 10
# bits of mantissa, bfloat16 has 7).
LARGEST_DIFFERENCE_ALONE, IN_HALF_PRECISION = 0.01, 0.1
IMAGES_ALONE = 8


def check_deterministic(logits_fn: LogitsFn, batches: Sequence[Tensor]) -> tuple[TrustCheck, Tensor]:
    """Do two clean passes agree? The check, and the logits of the first, float32 (N, K), of pixels (N, K, H, W)."""
    first, second = (_logits(logits_fn, batches) for _ in range(2))
    difference = _difference(first, second)
    if not math.isfinite(difference):
        sentence = f"The logits of {len(first)} images are not all finite: look for NaN or overflow in the model."
        return TrustCheck("deterministic", False, None, sentence), first
    value = float(f"{difference / range_of_top_two(first):.1e}")
    changed = first.argmax(1) != second.argmax(1)
    check = verdict(
        "deterministic",
        value <= LARGEST_DIFFERENCE and not changed.any(),
        value,
        f"over two clean passes, the top two logits of {len(first)} images differ by at most {value:.1e} of their "
        f"range and {changed.float().mean():.1%} of the predictions change",
        advice="each step of the attack sees one random draw only, so the reported accuracy is too high: switch the "
        "randomness off, or average the gradients of many passes (expectation over transformation)",
    )
    return check, first


def check_alone(logits_fn: LogitsFn, pixels: Tensor, in_batch: Tensor) -> TrustCheck:
    """Does an image get the same logits without the others of its batch?

    Args:
        pixels: (N, C, H, W), of which the first `IMAGES_ALONE` are asked about.
        in_batch: float32 (N, K) or (N, K, H, W), the logits they got in their batches.
    """
    # Two copies of each: layers that need more than one value a channel to normalise would refuse a single image.
    pairs = [image.expand(2, *image.shape[1:]) for image in pixels[:IMAGES_ALONE].split(1)]
    with torch.no_grad():
        outputs = [logits_fn(pair)[:1] for pair in pairs]
    alone, together = torch.cat(outputs).float(), in_batch[: len(pairs)]
    difference = _difference(together, alone)
    if not math.isfinite(difference):
        sentence = f"The logits of {len(alone)} images alone are not all finite: look for NaN or overflow in the model."
        return TrustCheck("alone", False, None, sentence)
    value = float(f"{difference / range_of_top_two(in_batch):.1e}")
    limit = LARGEST_DIFFERENCE_ALONE if outputs[0].dtype == torch.float32 else IN_HALF_PRECISION
    return verdict(
        "alone",
        value <= limit,
        value,
        f"alone and in their batch, the top two logits of {len(alone)} images differ by at most {value:.1e} of their "
        "range",
        advice="what the attack found in one batch may be right again in another, and the other way round: put the "
        "model in evaluation mode, with BatchNorm on its running statistics",
    )


def _logits(logits_fn: LogitsFn, batches: Sequence[Tensor]) -> Tensor:
    with torch.no_grad():
        return torch.cat([logits_fn(pixels).float() for pixels in batches])


def _difference(first: Tensor, second: Tensor) -> float:
    """The largest difference of the first's top two logits, (N, K) each; not finite where any logit's is not."""
    # Classes that a model rules out may hold minus infinity, the same both times.
    difference = torch.where(first == second, 0.0, (first - second).abs())
    if not difference.isfinite().all():
        return math.nan
    return difference.gather(1, first.topk(min(2, first.shape[1]), dim=1).indices).max().item()


def range_of_top_two(logits: Tensor) -> float:
    """Of the top two logits of all images: those that decide, whatever the model gives the other classes."""
    top = logits.topk(min(2, logits.shape[1]), dim=1).values
    low, high = top[top.isfinite()].aminmax() if top.isfinite().any() else (top.new_zeros(()),) * 2
    return max((high - low).item(), torch.finfo(torch.float32).tiny)
