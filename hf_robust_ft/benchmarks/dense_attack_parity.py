"""Pixel accuracy under our dense attacks and under the algorithm of SEA's authors, at equal steps on the same networks.

    python -m hf_robust_ft.benchmarks.dense_attack_parity --networks 8 --steps 30 --eps 8/255
    python -m hf_robust_ft.benchmarks.dense_attack_parity --model runs/scenes --images 32 --steps 30 --eps 8/255

Their algorithm is written here once more from what https://github.com/nmndeep/Robust-Segmentation does (commit 5a1d308,
semseg/attacker.py, functions apgd_largereps and apgd_train; arXiv 2306.12941), in a loop of its own that shares nothing
with `ApgdRun`: balls of 2, 1.5 and 1 eps; in each APGD on the loss, which compares points by plain cross-entropy
(their track_loss) and goes on in the next ball from the point of fewest right pixels. Random networks are small
SegFormers whose own answers are the labels.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from hf_robust_ft.attacks import APGD, attack_mode
from hf_robust_ft.attacks.dense_losses import IGNORED, ignored_as_negative
from hf_robust_ft.attacks.pixels import PixelSpace
from hf_robust_ft.attacks.segmenter import PixelSegmenter
from hf_robust_ft.attacks.threat_model import ThreatModel, parse_eps
from hf_robust_ft.data.segmentation import load_segmentation_dataset, with_pixel_values_and_masks
from hf_robust_ft.evaluation.batches import stack_masks
from hf_robust_ft.models.segmentation import load_segmentation_model

LOSSES = ("pixel_ce", "masked_ce", "masked_ce_balanced", "js")
CLASSES, SIDE = 8, 32  # of the random networks
Criterion = Callable[[Tensor, Tensor], Tensor]  # logits (N, K, H, W), labels (N, H, W) -> a value a pixel


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Of each pixel, (N, H, W); 0 where it has no label."""
    return F.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORED)


def criterion(loss: str, weights: Tensor | None = None) -> Criterion:
    """What the authors' attack of this name climbs, pixel by pixel.

    Args:
        weights: of each pixel (N, H, W), for masked_ce_balanced.
    """
    if loss == "pixel_ce":
        return cross_entropy
    if loss == "js":
        return _jensen_shannon

    def masked(logits: Tensor, labels: Tensor) -> Tensor:
        values = cross_entropy(logits, labels) * (logits.argmax(1) == labels)
        return values if weights is None else values * weights

    return masked


def _jensen_shannon(logits: Tensor, labels: Tensor) -> Tensor:
    answer = logits.softmax(1)
    label = F.one_hot(labels.clamp(min=0), logits.shape[1]).movedim(-1, 1).to(answer.dtype)
    middle = (answer + label) / 2
    to_middle = (torch.xlogy(each, each) - torch.xlogy(each, middle) for each in (answer, label))
    return sum(each.sum(1) for each in to_middle) / 2 * (labels >= 0)


def class_weights(labels: Tensor, by_image: bool) -> Tensor:
    """Each pixel's inverse share of its class, (N, H, W): in its image, as ours has it, or in all, as the authors'."""
    counts = F.one_hot(labels.clamp(min=0), int(labels.max()) + 1) * (labels >= 0)[..., None]
    counts = counts.sum((1, 2))
    counts = counts if by_image else counts.sum(0, keepdim=True).expand_as(counts)
    weights = 1 / counts.clamp(min=1).float()
    return weights.gather(1, labels.clamp(min=0).flatten(1)).view_as(labels)


@dataclass
class Visit:
    """A point, and of each image the loss that points are compared by, the gradient and the share of right pixels."""

    x: Tensor
    compared: Tensor
    gradient: Tensor
    right: Tensor

    def where(self, these: Tensor, other: "Visit") -> "Visit":
        """`other`'s rows for these images (N,)."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Visit(*(torch.where(these.view(-1, *[1] * (old.ndim - 1)), new, old) for old, new in pairs))


def authors_attack(
    logits_fn: Callable[[Tensor], Tensor],
    pixels: Tensor,
    labels: Tensor,
    eps: float,
    steps: int,
    climbed: Criterion,
    start: Tensor,
) -> Tensor:
    """The share of right pixels that SEA's attack under Linf leaves of each image, (N,).

    Args:
        start: (N, C, H, W), in the ball of 2 eps.
    """
    early = int(0.3 * steps)
    at = start
    for factor, count in ((2, early), (1.5, early), (1, steps - 2 * early)):
        radius = factor * eps

        def into_ball(x: Tensor, radius: float = radius) -> Tensor:
            return x.clamp(pixels - radius, pixels + radius).clamp(0, 1)

        fewest = _phase(lambda x: _visit(logits_fn, x, labels, climbed), into_ball, into_ball(at), radius, count)
        at = fewest.x
    return fewest.right


def _phase(
    visit: Callable[[Tensor], Visit], into_ball: Callable[[Tensor], Tensor], start: Tensor, radius: float, count: int
) -> Visit:
    """APGD in one ball: the visit with fewest right pixels, the last of equals."""
    here = best = fewest = visit(start)
    before, size = here.x, torch.full((len(start), 1, 1, 1), 2.0 * radius)
    window, since, rises = max(int(0.22 * count), 1), 0, torch.zeros(len(start))
    loss_before, loss_at_check = torch.zeros(len(start)), best.compared
    halved = torch.ones(len(start), dtype=torch.bool)
    for step in range(count):
        momentum, before = here.x - before, here.x
        share = 0.75 if step else 1.0
        moved = into_ball(here.x + size * here.gradient.sign())
        here = visit(into_ball(here.x + share * (moved - here.x) + (1 - share) * momentum))
        fewest = fewest.where(here.right <= fewest.right, here)
        rises, loss_before = rises + (here.compared > loss_before), here.compared
        best = best.where(here.compared > best.compared, here)
        since += 1
        if since == window:
            halved = (rises <= 0.75 * window) | (~halved & (loss_at_check >= best.compared))
            size, loss_at_check = torch.where(halved.view(-1, 1, 1, 1), size / 2, size), best.compared
            here = here.where(halved, best)
            since, rises = 0, torch.zeros(len(start))
            window = max(window - max(int(0.03 * count), 1), max(int(0.06 * count), 1))
    return fewest


def _visit(logits_fn: Callable[[Tensor], Tensor], x: Tensor, labels: Tensor, climbed: Criterion) -> Visit:
    x = x.detach().requires_grad_()
    logits = logits_fn(x)
    (gradient,) = torch.autograd.grad(climbed(logits, labels).flatten(1).mean(1).sum(), x)
    compared = cross_entropy(logits.detach(), labels).flatten(1).mean(1)
    return Visit(x.detach(), compared, gradient, right_share(logits, labels))


def right_share(logits: Tensor, labels: Tensor) -> Tensor:
    """The share of labelled pixels that are right, (N,)."""
    return (logits.argmax(1) == labels).sum((1, 2)) / (labels >= 0).sum((1, 2))


def random_networks(count: int, images: int) -> Iterator[tuple[PixelSegmenter, Tensor, Tensor]]:
    """Small random SegFormers, random textures, and what the network makes of these as labels."""
    for seed in range(count):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = SegformerConfig(
                num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[7, 3],
                strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=16,
                num_labels=CLASSES,
            )  # fmt: skip
            model = SegformerForSemanticSegmentation(config).eval()
            coarse = F.interpolate(torch.rand(images, 3, 8, 8), size=SIDE, mode="bilinear")
            pixels = (coarse + 0.1 * torch.randn(images, 3, SIDE, SIDE)).clamp(0, 1)
        segmenter = PixelSegmenter(model, PixelSpace(), (SIDE, SIDE))
        with torch.no_grad():
            labels = segmenter(pixels).argmax(1)
        yield segmenter, pixels, labels


def checkpoint(model_id: str, dataset: str, images: int) -> tuple[PixelSegmenter, Tensor, Tensor]:
    """A trained model, and the first images of a test split with their masks."""
    model, processor = load_segmentation_model(model_id)
    splits = load_segmentation_dataset(dataset)
    reader = splits.reader(model.config)
    data = with_pixel_values_and_masks(splits["test"], processor, reader, "none", False)
    batch = stack_masks([data[index] for index in range(images)])
    space, labels = PixelSpace.from_processor(processor), ignored_as_negative(batch["labels"], reader.label_for_ignored)
    return PixelSegmenter(model, space, tuple(labels.shape[1:])), space.clipped_pixels(batch["pixel_values"]), labels


def compare(
    segmenter: PixelSegmenter, pixels: Tensor, labels: Tensor, threat_model: ThreatModel, steps: int, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Pixel accuracy under (ours, theirs) for each loss, from the images and from the same random points."""
    found = {}
    with attack_mode(segmenter):
        for loss in LOSSES:
            weights = class_weights(labels, by_image=True) if loss == "masked_ce_balanced" else None
            for is_random in (False, True):
                generators = [torch.Generator().manual_seed(seed) for _ in range(2)]
                attack = APGD(steps=steps, loss=loss, random_start=is_random, select="fooled", larger_eps=True)
                result = attack(segmenter, pixels, labels, threat_model, generator=generators[0])
                ours = (result.predictions == labels).sum() / (labels >= 0).sum()
                widest = threat_model.ball(pixels).scaled(2)
                start = widest.random_start(generators[1]) if is_random else pixels
                arguments = segmenter, pixels, labels, threat_model.eps, steps
                theirs = authors_attack(*arguments, criterion(loss, weights), start).mean()
                found[f"{loss}, {'random' if is_random else 'clean'} start"] = (float(ours), float(theirs))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m hf_robust_ft.benchmarks.dense_attack_parity", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--model", help="A trained segmenter (default: random networks).")
    parser.add_argument("--dataset", default="digits_scenes", help="Whose first test images it is attacked on.")
    parser.add_argument("--networks", type=int, default=8, help="Random networks, each with images of its own.")
    parser.add_argument("--images", type=int, default=8, help="Of each network.")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--eps", default="8/255", help="Linf, in pixel units of [0, 1].")
    options = parser.parse_args()
    threat_model = ThreatModel("Linf", parse_eps(options.eps))
    cases = random_networks(options.networks, options.images)
    if options.model:
        cases = iter([checkpoint(options.model, options.dataset, options.images)])
    pairs: dict[str, list[tuple[float, float]]] = {}
    for seed, case in enumerate(cases):
        for name, pair in compare(*case, threat_model, options.steps, seed).items():
            pairs.setdefault(name, []).append(pair)
    rows = {}
    for name, of_networks in pairs.items():
        ours, theirs = (torch.tensor(each) for each in zip(*of_networks, strict=True))
        rows[name] = {"ours": round(float(ours.mean()), 4), "theirs": round(float(theirs.mean()), 4)}
        if len(ours) > 1:
            error = float((ours - theirs).std()) / math.sqrt(len(ours))
            rows[name] |= {"difference": round(float((ours - theirs).mean()), 4), "standard error": round(error, 4)}
    print(json.dumps({"eps": options.eps, "steps": options.steps, "pixel accuracy": rows}, indent=2))


if __name__ == "__main__":
    main()
