"""A search without gradients for a segmenter: squares of the image moved to the ball's edge, kept where pixels fall."""

import torch
from torch import Tensor

from hf_robust_ft.attacks.apgd import LogitsFn
from hf_robust_ft.attacks.dense_losses import pixel_ce
from hf_robust_ft.attacks.threat_model import ThreatModel
from hf_robust_ft.evaluation.segmentation.counts import pixel_counts

LARGEST, SMALLEST = 0.8, 0.05  # sides of the squares, as a share of the image's; they shrink from query to query


def square_search(
    logits_fn: LogitsFn,
    pixels: Tensor,
    labels: Tensor,
    threat_model: ThreatModel,
    *,
    queries: int,
    generator: torch.Generator,
) -> Tensor:
    """Fewest right pixels (N,) int64 that a random search finds, in the way of Square (arXiv 1912.00049).

    It begins with stripes up and down. In each query one square gets another sign a channel; the move is kept where
    fewer pixels are right, or as many and the mean cross-entropy is higher. So it needs answers alone, and reaches what
    an attack by gradients must reach, too, unless the gradients lead astray.

    Args:
        pixels: float32 (N, C, H, W) in [0, 1].
        labels: (N, H', W'), below 0 where a pixel counts nowhere.
        queries: forwards for each image.
    """
    ball = threat_model.ball(pixels)
    count, channels, height, width = pixels.shape

    def signs(*shape: int) -> Tensor:
        drawn = torch.rand(shape, generator=generator, device=pixels.device)
        return (drawn < 0.5).to(pixels.dtype).mul(2).sub(1)

    def judged(x: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits_fn(x)
        return pixel_counts(logits.argmax(1), labels, logits.shape[1])[:, 0].sum(1), pixel_ce(logits, labels)

    with torch.no_grad():
        clean, _ = judged(pixels)
        direction = signs(count, channels, 1, width).expand_as(pixels).clone()
        fewest, highest = judged(ball.project(pixels + threat_model.eps * direction))
        for query in range(queries):
            share = LARGEST * (SMALLEST / LARGEST) ** (query / queries)
            rows, columns = max(1, round(share * height)), max(1, round(share * width))
            top = int(torch.randint(height - rows + 1, (), generator=generator, device=pixels.device))
            left = int(torch.randint(width - columns + 1, (), generator=generator, device=pixels.device))
            proposed = direction.clone()
            proposed[..., top : top + rows, left : left + columns] = signs(count, channels, 1, 1)
            right, loss = judged(ball.project(pixels + threat_model.eps * proposed))
            better = (right < fewest) | ((right == fewest) & (loss > highest))
            direction = torch.where(better.view(-1, 1, 1, 1), proposed, direction)
            fewest, highest = torch.where(better, right, fewest), torch.where(better, loss, highest)
    return fewest.minimum(clean)
