"""Can a robust accuracy be trusted? Checks that tell when it is likely too high.

An attack that fails (masked gradients, too few steps, a randomised model) looks exactly like a robust model. Passing
every check is no proof; failing one means that the number does not measure robustness yet. After Athalye et al. 2018
(arXiv 1802.00420), Carlini et al. 2019 (arXiv 1902.06705) and Pintor et al. 2022 (arXiv 2106.09947).
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_robust_ft.attacks import APGD
from hf_robust_ft.attacks.apgd import LogitsFn
from hf_robust_ft.attacks.losses import get_loss
from hf_robust_ft.attacks.threat_model import ThreatModel, format_eps
from hf_robust_ft.evaluation.output_checks import check_alone, check_deterministic
from hf_robust_ft.evaluation.second_opinion import check_second_opinion
from hf_robust_ft.evaluation.trust_verdicts import (
    OPENINGS,
    TrustCheck,
    is_of_several_attacks,
    is_tolerated,
    other_attacks,
    verdict,
)

LONGER = 5  # times the steps, for `converged`
MOST_DRAWS = 10  # of random noise
LEAST_FOOLED_AT_HUGE_EPS = 0.95
LOSS_SCALES = (2.0**10, 2.0**15, 2.0**4)  # tried in turn, as half precision underflows at some, overflows at others


def run_trust_checks(
    logits_fn: LogitsFn,
    pixels: Tensor,
    labels: Tensor,
    threat_model: ThreatModel,
    attack: APGD,
    *,
    seed: int = 0,
    batch_size: int = 64,
    check_converged: bool = True,
    standing: Tensor | None = None,
    classes: Tensor | None = None,
    protocol: str = "paper",
) -> list[TrustCheck]:
    """Check a handful of images, in evaluation mode, for signs that the attack fails where the model is not robust.

    With D = C * H * W and "correct images" for the correctly classified ones, which alone are attacked:

    | check | `value` | fails |
    |---|---|---|
    | `gradients` | share of correct images with an input gradient all zero or not finite | zero: *, others: any |
    | `monotone` | largest rise of the accuracy over eps/4, eps/2, eps, attacked apart | * |
    | `random_noise` | share of correct images the attack fools, less that fooled by random noise | not above 0 |
    | `converged` | fall of the accuracy with five times the steps | * |
    | `deterministic` | difference of the top two logits in two passes, over their range | above 1e-4, or a change |
    | `alone` | the same of 8 images by themselves and in their batch | above 1 % (10 % in half precision) |
    | `huge_eps` | share of correct images fooled at Linf 0.5, L2 0.5 sqrt(D) or L1 0.5 D | below 95 % |
    | `second_opinion` | share of images that stand until other attacks come | * |

    *: for more images than `trust_verdicts.is_tolerated`, one or 1 % of those given, over which accuracies and their
    differences are taken. A fault of the model itself is never tolerated: a prediction that changes, a number that is
    not finite. Noise is the worst of as many draws as the attack has steps, at most 10; it passes where the attack
    fools all, or either a single image. What the checks before it fool of the images that stand counts for
    `second_opinion`, too, which also fails where the loss of its own attack never rose on more than is tolerated. With
    n = `attack.steps` the checks cost up to 1 + 3 n + 10 * 0.3 + 5 n + n gradient passes a correct image (times the
    attack's restarts and target classes), and for one that stands what `check_second_opinion` tells. A seed gives the
    same result at any batch size (with random starts: at the same one) of a device.

    Args:
        logits_fn: pixels (N, C, H, W) in [0, 1] -> logits (N, K); call this inside `attack_mode(model)`, under the
            autocast of the evaluation.
        pixels: float32 (N, C, H, W) in [0, 1]; 64 images are enough to see each of the failures.
        labels: int64 (N,).
        threat_model: norm and eps of the accuracy in question; at eps = 0 only `deterministic` is checked.
        attack: the attack that gave it.
        seed: of the random noise, and of the attack's random starts.
        batch_size: images at a time.
        check_converged: off, that check is left out: the rounds of `attack_steps="auto"` tell it of all images.
        standing: bool (N,), those that the reported accuracy counts as robust, where other or longer attacks than
            `attack` decided; without it, those that `attack` leaves.
        classes: int64 (M,), the classes that occur in the data, as a label or predicted; without it, in these images.
        protocol: that the accuracy was measured by: what a failed check advises is something else.

    Returns:
        One `TrustCheck` for each of `OPENINGS`, in this order.

    Raises:
        ValueError: no images, labels that do not match, or a batch size below 1.
    """
    if pixels.ndim != 4 or len(pixels) == 0 or labels.shape != pixels.shape[:1] or batch_size < 1:
        got = f"{tuple(pixels.shape)}, {tuple(labels.shape)} and {batch_size}"
        raise ValueError(f"Trust checks need pixels (N, C, H, W), labels (N,), N >= 1 and batch_size >= 1; got {got}.")
    deterministic, logits = check_deterministic(logits_fn, pixels.split(batch_size))
    clean = {"deterministic": deterministic, "alone": check_alone(logits_fn, pixels, logits)}
    predictions = logits.argmax(1)
    correct = predictions == labels
    if threat_model.eps == 0 or not correct.any():
        why = "eps is 0, so no attack was run" if threat_model.eps == 0 else "no image is classified correctly"
        unchecked = {name: TrustCheck(name, True, None, f"Not checked ({name}): {why}.") for name in OPENINGS}
        return [check for check in (unchecked | clean).values() if check_converged or check.name != "converged"]
    sample = _Sample(
        logits_fn, pixels[correct], labels[correct], len(pixels), threat_model, attack, seed, batch_size, protocol
    )
    gradients = _check_gradients(sample)
    monotone, fooled, loss, by_smaller_eps = _check_monotone(sample)
    noise, by_noise = _check_random_noise(sample, fooled)
    known, converged = by_smaller_eps | by_noise, []
    if check_converged:
        check, by_more_steps = _check_converged(sample, fooled, loss)
        known, converged = known | by_more_steps, [check]
    stands = ~fooled if standing is None else ~fooled & standing[correct]
    second_opinion = check_second_opinion(
        logits_fn,
        sample.pixels[stands],
        sample.labels[stands],
        threat_model,
        num_images=len(pixels),
        classes=torch.cat([labels, predictions] if classes is None else [classes.to(labels), labels, predictions]),
        seed=seed,
        batch_size=batch_size,
        known=known[stands],
        protocol=protocol,
    )
    return [gradients, monotone, noise, *converged, *clean.values(), _check_huge_eps(sample), second_opinion]


@dataclass(frozen=True)
class _Sample:
    """The correctly classified images, out of `num_images` over which accuracies are taken, and their attack."""

    logits_fn: LogitsFn
    pixels: Tensor
    labels: Tensor
    num_images: int
    threat_model: ThreatModel
    attack: APGD
    seed: int
    batch_size: int
    protocol: str

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self.pixels.split(self.batch_size), self.labels.split(self.batch_size), strict=True)

    def attacked(self, eps: float) -> tuple[Tensor, Tensor]:
        """Which images are fooled, bool (N,), and the attack's loss, float32 (N,)."""
        generator = torch.Generator(self.pixels.device).manual_seed(self.seed)
        results = [
            self.attack(self.logits_fn, pixels, labels, self.threat_model, eps=eps, generator=generator)
            for pixels, labels in self.batches()
        ]
        return torch.cat([result.fooled for result in results]), torch.cat([result.loss for result in results])

    def accuracy(self, fooled: int) -> float:
        return (len(self.labels) - fooled) / self.num_images

    @property
    def more_tries(self) -> str:
        """What may find what the attack misses, in words."""
        own = "" if is_of_several_attacks(self.protocol) else "more steps, random restarts or "
        return own + other_attacks(self.protocol)


def _check_gradients(sample: _Sample) -> TrustCheck:
    sizes = torch.cat([_gradient_sizes(sample, *batch) for batch in sample.batches()])
    zero, not_finite = int((sizes == 0).sum()), int((~sizes.isfinite()).sum())
    untested = "these count as robust without having been tested"
    if is_of_several_attacks(sample.protocol):
        untested = "where these count as robust, only an attack without gradients (Square) has tested it"
    return verdict(
        "gradients",
        is_tolerated(zero, sample.num_images) and not not_finite,
        (zero + not_finite) / len(sizes),
        f"at the {len(sizes)} correctly classified images the gradient of the attack's loss is zero in every pixel for "
        f"{zero / len(sizes):.1%} and not finite for {not_finite / len(sizes):.1%}",
        advice=f"{untested}: look for rounding, saturation or half precision in the model, and measure by "
        f"{other_attacks(sample.protocol)}",
    )


def _gradient_sizes(sample: _Sample, pixels: Tensor, labels: Tensor) -> Tensor:
    """The largest entry of each image's input gradient, (N,), up to a positive factor."""
    loss = get_loss(sample.attack.loss)
    with torch.enable_grad():
        x = pixels.detach().float().requires_grad_()
        logits = sample.logits_fn(x)
        loss.check_num_classes(logits.shape[1])
        likeliest_wrong = logits.detach().float().scatter(1, labels[:, None], -torch.inf).argmax(1)
        objective = loss.objective(logits, labels, likeliest_wrong)
        return largest_gradients(objective, x)


def largest_gradients(objective: Tensor, x: Tensor) -> Tensor:
    """The largest entry of each image's gradient of (N,) at `x`, (N,), by the first loss scale that shows one."""
    sizes = torch.zeros_like(objective)
    for scale in LOSS_SCALES:
        (gradient,) = torch.autograd.grad(objective.sum() * scale, x, retain_graph=True)
        sizes = torch.where((sizes > 0) & sizes.isfinite(), sizes, gradient.abs().flatten(1).amax(1))
        if ((sizes > 0) & sizes.isfinite()).all():
            break
    return sizes


def _check_monotone(sample: _Sample) -> tuple[TrustCheck, Tensor, Tensor, Tensor]:
    """The check, what the attack found at the threat model's eps (see `_Sample.attacked`), and what smaller eps do."""
    epsilons = [sample.threat_model.eps / 4, sample.threat_model.eps / 2, sample.threat_model.eps]
    results = [sample.attacked(eps) for eps in epsilons]
    counts = [int(fooled.sum()) for fooled, _ in results]
    lost = max(0, counts[0] - counts[1], max(counts[:2]) - counts[2])
    value = lost / sample.num_images
    curve = [f"{sample.accuracy(n):.1%} at {format_eps(eps)}" for n, eps in zip(counts, epsilons, strict=True)]
    check = verdict(
        "monotone",
        is_tolerated(lost, sample.num_images),
        value,
        f"with each eps attacked from scratch, the accuracy on {sample.num_images} images is {curve[0]}, {curve[1]} "
        f"and {curve[2]}, a rise of {value:.1%}",
        advice=f"it is misled, so the reported accuracy is too high: try {sample.more_tries}",
    )
    return check, *results[-1], results[0][0] | results[1][0]


def _check_random_noise(sample: _Sample, fooled: Tensor) -> tuple[TrustCheck, Tensor]:
    """The check, and which images noise fools, bool (N,)."""
    draws = min(sample.attack.steps, MOST_DRAWS)
    noisy = _fooled_by_noise(sample, draws)
    count, by_attack, by_noise = len(sample.labels), int(fooled.sum()), int(noisy.sum())
    too_few = by_attack == by_noise <= 1  # noise that finds more is no accident, however little it is
    check = verdict(
        "random_noise",
        too_few or by_attack == count or by_attack > by_noise,
        (by_attack - by_noise) / count,
        f"of the {count} correctly classified images, the attack fools {by_attack / count:.1%} at "
        f"{sample.threat_model} and the worst of {draws} random perturbations of that size {by_noise / count:.1%}"
        + (" (neither finds more than one image: huge_eps and second_opinion tell more)" if too_few else ""),
        advice=f"it is misled, so the reported accuracy is too high: try {sample.more_tries}",
    )
    return check, noisy


def _fooled_by_noise(sample: _Sample, draws: int) -> Tensor:
    generator = torch.Generator(sample.pixels.device).manual_seed(sample.seed)
    ball = sample.threat_model.ball(sample.pixels.detach().float())
    fooled = torch.zeros_like(sample.labels, dtype=torch.bool)
    with torch.no_grad():
        for _ in range(draws):
            # Drawn for all images at once, so that the noise does not depend on the batch size.
            noisy = ball.random_start(generator).split(sample.batch_size)
            fooled |= torch.cat([sample.logits_fn(pixels).argmax(1) for pixels in noisy]) != sample.labels
    return fooled


def _check_converged(sample: _Sample, fooled: Tensor, loss: Tensor) -> tuple[TrustCheck, Tensor]:
    """The check, and which more images the longer attack fools, bool (N,)."""
    longer = dataclasses.replace(sample.attack, steps=LONGER * sample.attack.steps)
    before, more, rise = int(fooled.sum()), torch.zeros_like(fooled), ""
    if not fooled.all():
        rows = ~fooled
        standing = dataclasses.replace(sample, pixels=sample.pixels[rows], labels=sample.labels[rows], attack=longer)
        fooled_later, later_loss = standing.attacked(sample.threat_model.eps)
        more[rows], rise = fooled_later, _loss_change(loss[rows][~fooled_later], later_loss[~fooled_later])
    later = int(more.sum())
    check = verdict(
        "converged",
        is_tolerated(later, sample.num_images),
        later / sample.num_images,
        f"the accuracy on {sample.num_images} images at {sample.threat_model} is {sample.accuracy(before):.1%} after "
        f"{sample.attack.steps} and {sample.accuracy(before + later):.1%} after {longer.steps} attack steps{rise}",
        advice=f"the reported accuracy is too high: use at least {longer.steps} steps",
    )
    return check, more


def _loss_change(before: Tensor, after: Tensor) -> str:
    """The median relative change of the loss (N,), in words; none without images."""
    change = ((after - before) / before.abs().clamp(min=torch.finfo(torch.float32).tiny)).nanmedian().item()
    words = f"{change:+.0%}" if change <= 9 else "more than tenfold"
    return "" if math.isnan(change) else f" (median change of the loss where the image stands both times: {words})"


def _check_huge_eps(sample: _Sample) -> TrustCheck:
    size = sample.pixels[0].numel()
    huge = {"Linf": 0.5, "L2": 0.5 * math.sqrt(size), "L1": 0.5 * size}[sample.threat_model.norm]
    threat_model = dataclasses.replace(sample.threat_model, eps=max(huge, sample.threat_model.eps))
    fooled, count = int(sample.attacked(threat_model.eps)[0].sum()), len(sample.labels)
    hints = "" if is_of_several_attacks(sample.protocol) else "use more steps, "
    return verdict(
        "huge_eps",
        fooled / count >= LEAST_FOOLED_AT_HUGE_EPS,
        fooled / count,
        f"allowed to change pixels by half of their range ({threat_model}), it fools {fooled / count:.1%} of "
        f"the {count} correctly classified images, where at least {LEAST_FOOLED_AT_HUGE_EPS:.1%} should fall",
        advice="the attack is weak, or the model hides its gradients or ignores its input, so the reported accuracy "
        f"means little: {hints}look for rounding or saturation, and measure by {other_attacks(sample.protocol)}",
    )
