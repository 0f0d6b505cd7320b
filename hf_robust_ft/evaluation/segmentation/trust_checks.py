"""Signs that an attack fails where a segmentation model is not robust, looked for on a few images."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hf_robust_ft.attacks import APGD
from hf_robust_ft.attacks.apgd import LogitsFn
from hf_robust_ft.attacks.dense_losses import labelled_pixels, right_pixels
from hf_robust_ft.attacks.losses import get_loss
from hf_robust_ft.attacks.random_state import seeded_generator
from hf_robust_ft.attacks.threat_model import ThreatModel
from hf_robust_ft.evaluation.output_checks import check_alone, check_deterministic
from hf_robust_ft.evaluation.segmentation.counts import RIGHT
from hf_robust_ft.evaluation.segmentation.reliability import CHECKS
from hf_robust_ft.evaluation.segmentation.search import square_search
from hf_robust_ft.evaluation.segmentation.settings import SegmentationSettings
from hf_robust_ft.evaluation.trust_checks import MOST_DRAWS, largest_gradients
from hf_robust_ft.evaluation.trust_verdicts import TrustCheck, is_tolerated, verdict

# Of pixel accuracy. Losses that all do well differ by a point or so; what hides gradients loses tens of points.
TOLERATED, TOLERATED_OF_OTHERS = 0.01, 0.02
LONGER = 3  # times the steps, for `converged`
MOST_RIGHT_AT_HUGE_EPS = 0.2  # of pixels that were right, the mean over their classes
# Cross-entropy spends itself on pixels that are wrong already: at Linf 0.5 it leaves 44 % of digits' scenes, this 7 %.
AT_HUGE_EPS = APGD(steps=40, loss="masked_ce", random_start=False, select="fooled")
QUERIES = 200  # of the search without gradients
OTHER_LOSSES = ("masked_ce", "js", "masked_spherical")  # of the second opinion, without those of the protocol
COMPARED_IMAGES = 4  # whose logits are compared pixel by pixel: they take much memory
RELIABLE = "measure by protocol reliable"


def run_segmentation_checks(
    logits_fn: LogitsFn,
    pixels: Tensor,
    labels: Tensor,
    settings: SegmentationSettings,
    *,
    reported: np.ndarray,
    converged: TrustCheck | None = None,
    batch_size: int = 16,
) -> list[TrustCheck]:
    """Check a handful of images, in evaluation mode. Pixel accuracies here are over all their labelled pixels.

    | check | `value` | fails |
    |---|---|---|
    | `gradients` | share of images with an input gradient all zero or not finite | above one image or 1 %; not finite |
    | `random_noise` | fall of the accuracy by the attack, less that by the worst of several random draws | below 0 |
    | `converged` | fall of the accuracy with three times the steps | above one point |
    | `deterministic`, `alone` | as for a classifier, of the logits of 4 images' pixels | as there |
    | `huge_eps` | mean over classes of right pixels left at Linf 0.5, L2 0.5 sqrt(D) or L1 0.5 D | above 20 %, or * |
    | `second_opinion` | fall of the accuracy by other losses and a search without gradients | above two points |

    D is C * H * W. The last is what a model that hides its gradients cannot pass: `square_search` needs none.
    *: more than 20 % of all right pixels are left, and that search leaves two points of accuracy less.

    Args:
        logits_fn: pixels (N, C, H, W) in [0, 1] -> logits (N, K, H', W'); call this inside `attack_mode(model)`.
        pixels: float32 (N, C, H, W) in [0, 1].
        labels: int64 (N, H', W'), below 0 where a pixel counts nowhere.
        settings: whose attacks gave the figures in question.
        reported: (N, 3, K), the pixel counts that are reported of these images at eps_g.
        converged: what is known of all images already, in place of three times the steps on these.
        batch_size: images at a time.

    Returns:
        One `TrustCheck` for each of `reliability.CHECKS`, in this order.
    """
    few = pixels[:COMPARED_IMAGES]
    deterministic, logits = check_deterministic(logits_fn, few.split(batch_size))
    found = {"deterministic": deterministic, "alone": check_alone(logits_fn, few, logits)}
    left = torch.as_tensor(reported[:, RIGHT].sum(-1), device=pixels.device)
    sample = _Sample(logits_fn, pixels, labels, settings, left, batch_size)
    if settings.threat_model.eps == 0 or not sample.clean.any():
        why = "eps is 0, so no attack was run" if settings.threat_model.eps == 0 else "no pixel is right"
        unchecked = {name: TrustCheck(name, True, None, f"Not checked ({name}): {why}.") for name in CHECKS}
        return list((unchecked | found).values())
    if converged is not None:
        found["converged"] = converged
    for name, check in _OF_ATTACKS.items():
        if name not in found:
            found[name] = check(sample)
    return [found[name] for name in CHECKS]


@dataclass
class _Sample:
    """The images, and how many of each one's pixels are right: `left` (N,) as reported, `clean` (N,) without attack."""

    logits_fn: LogitsFn
    pixels: Tensor
    labels: Tensor
    settings: SegmentationSettings
    left: Tensor
    batch_size: int

    def __post_init__(self):
        self.labelled = labelled_pixels(self.labels)
        self.clean = self.right_of(self.pixels)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self.pixels.split(self.batch_size), self.labels.split(self.batch_size), strict=True)

    def predict(self, pixels: Tensor) -> Tensor:
        """The class of each pixel of these (N, C, H, W), (N, H', W')."""
        with torch.no_grad():
            return torch.cat([self.logits_fn(x).argmax(1) for x in pixels.split(self.batch_size)])

    def right_of(self, pixels: Tensor) -> Tensor:
        """How many pixels of each image are right for these (N, C, H, W), (N,)."""
        return right_pixels(self.predict(pixels), self.labels)

    def attacked(self, attack: APGD, threat_model: ThreatModel, generator: torch.Generator) -> Tensor:
        """The class of each pixel after an attack, (N, H', W')."""
        results = [attack(self.logits_fn, *batch, threat_model, generator=generator) for batch in self.batches()]
        return torch.cat([result.predictions for result in results])

    def left_by(self, attacks: Sequence[APGD]) -> Tensor:
        """How many pixels of each image are right after the worst of some attacks, (N,)."""
        generator = seeded_generator(self.pixels.device, self.settings.seed)
        fewest = self.clean
        for attack in attacks:
            predictions = self.attacked(attack, self.settings.threat_model, generator)
            fewest = fewest.minimum(right_pixels(predictions, self.labels))
        return fewest

    def left_by_search(self, threat_model: ThreatModel) -> Tensor:
        """The same after a search without gradients, (N,)."""
        generator = seeded_generator(self.pixels.device, self.settings.seed)
        found = [
            square_search(self.logits_fn, *batch, threat_model, queries=QUERIES, generator=generator)
            for batch in self.batches()
        ]
        return torch.cat(found)

    def accuracy(self, right: Tensor) -> float:
        return float(right.sum() / self.labelled.sum())

    @property
    def attacks(self) -> list[APGD]:
        return self.settings.attacks

    @property
    def stronger(self) -> str:
        """What may find what the attack misses, in words."""
        return "more attack steps" if len(self.attacks) > 1 else f"more attack steps, or {RELIABLE}"


def _check_gradients(sample: _Sample) -> TrustCheck:
    sizes = torch.cat([_gradient_sizes(sample, *batch) for batch in sample.batches()])
    zero, not_finite = int((sizes == 0).sum()), int((~sizes.isfinite()).sum())
    return verdict(
        "gradients",
        zero < len(sizes) and is_tolerated(zero, len(sizes)) and not not_finite,
        (zero + not_finite) / len(sizes),
        f"at {len(sizes)} images the gradient of the attack's loss is zero in every pixel for {zero / len(sizes):.1%} "
        f"and not finite for {not_finite / len(sizes):.1%}",
        advice="what counts as robust there has not been tested: look for rounding, saturation or half precision in "
        "the model",
    )


def _gradient_sizes(sample: _Sample, pixels: Tensor, labels: Tensor) -> Tensor:
    """The largest entry of each image's input gradient, (N,), up to a positive factor."""
    loss = get_loss(sample.attacks[0].loss)
    with torch.enable_grad():
        x = pixels.detach().float().requires_grad_()
        return largest_gradients(loss.objective(sample.logits_fn(x), labels, None), x)


def _check_noise(sample: _Sample) -> TrustCheck:
    draws = min(max(attack.steps for attack in sample.attacks), MOST_DRAWS)
    generator = seeded_generator(sample.pixels.device, sample.settings.seed)
    ball = sample.settings.threat_model.ball(sample.pixels)
    noisy = sample.clean
    for _ in range(draws):
        noisy = noisy.minimum(sample.right_of(ball.random_start(generator)))
    by_attack, by_noise, clean = (sample.accuracy(right) for right in (sample.left, noisy, sample.clean))
    return verdict(
        "random_noise",
        by_attack < by_noise or not sample.left.any() or by_noise == clean == by_attack,
        by_noise - by_attack,
        f"{clean:.1%} of the pixels are right; at {sample.settings.threat_model} the attack leaves {by_attack:.1%} and "
        f"the worst of {draws} random perturbations {by_noise:.1%}",
        advice=f"it is misled, so the reported figures are too high: try {sample.stronger}",
    )


def _check_converged(sample: _Sample) -> TrustCheck:
    longer = [dataclasses.replace(attack, steps=LONGER * attack.steps) for attack in sample.attacks]
    left = sample.left.minimum(sample.left_by(longer))
    before, after = sample.accuracy(sample.left), sample.accuracy(left)
    return verdict(
        "converged",
        before - after <= TOLERATED,
        before - after,
        f"{before:.1%} of the pixels are right after {sample.attacks[0].steps} and {after:.1%} after "
        f"{longer[0].steps} attack steps at {sample.settings.threat_model}",
        advice=f"the reported figures are too high: use at least {longer[0].steps} steps",
    )


def _check_huge_eps(sample: _Sample) -> TrustCheck:
    """Mean over classes, as an honest network may keep the one it falls back on, background, at any eps.

    Where so many pixels are background that by pixels the attack fails, a search without gradients must, too.
    """
    size, given = sample.pixels[0].numel(), sample.settings.threat_model
    huge = {"Linf": 0.5, "L2": 0.5 * size**0.5, "L1": 0.5 * size}[given.norm]
    threat_model = dataclasses.replace(given, eps=max(huge, given.eps))
    attack = dataclasses.replace(AT_HUGE_EPS, larger_eps=sample.attacks[0].larger_eps)
    generator = seeded_generator(sample.pixels.device, sample.settings.seed)
    found = sample.attacked(attack, threat_model, generator)
    left = _share_left_of_classes(sample.labels, sample.predict(sample.pixels), found)
    right = right_pixels(found, sample.labels)
    passed, searched = left <= MOST_RIGHT_AT_HUGE_EPS, ""
    if passed and right.sum() > MOST_RIGHT_AT_HUGE_EPS * sample.clean.sum():
        by_attack, by_search = sample.accuracy(right), sample.accuracy(sample.left_by_search(threat_model))
        passed = by_attack - by_search <= TOLERATED_OF_OTHERS
        searched = f"; of all pixels it leaves {by_attack:.1%} right, and a search without gradients {by_search:.1%}"
    return verdict(
        "huge_eps",
        passed,
        left,
        f"allowed to change pixels by half of their range ({threat_model}), {attack} leaves {left:.1%} of the right "
        f"pixels of a class, the mean over classes, where at most {MOST_RIGHT_AT_HUGE_EPS:.1%} should be left"
        f"{searched}",
        advice="the attack is weak, or the model hides its gradients or ignores its input, so the reported figures "
        f"mean little: try {sample.stronger}, and look for rounding or saturation",
    )


def _share_left_of_classes(labels: Tensor, clean: Tensor, attacked: Tensor) -> float:
    """Of each class's right pixels the share that an attack leaves right, the mean over classes that have any.

    Args:
        labels, clean, attacked: (N, H, W), the latter two predictions.
    """
    right = labels == clean  # no prediction is below 0
    before = labels[right].bincount()
    after = labels[right & (labels == attacked)].bincount(minlength=len(before))
    return float((after / before)[before > 0].mean())


def _check_second_opinion(sample: _Sample) -> TrustCheck:
    own, first = {attack.loss for attack in sample.attacks}, sample.attacks[0]
    others = [
        dataclasses.replace(first, loss=loss, random_start=True, larger_eps=False)
        for loss in OTHER_LOSSES
        if loss not in own
    ]
    by_others = sample.left_by(others)
    by_search = sample.left_by_search(sample.settings.threat_model)
    before = sample.accuracy(sample.left)
    after = sample.accuracy(sample.left.minimum(by_others).minimum(by_search))
    names = ", ".join(attack.loss for attack in others)
    return verdict(
        "second_opinion",
        before - after <= TOLERATED_OF_OTHERS,
        before - after,
        f"at {sample.settings.threat_model} the attack leaves {before:.1%} of the pixels right, and the worst of it "
        f"{after:.1%} with attacks on other losses ({names}) and a search without gradients ({QUERIES} "
        f"queries), which alone leave {sample.accuracy(by_others):.1%} and {sample.accuracy(by_search):.1%}",
        advice=f"the reported figures are too high: try {sample.stronger}, and look for what in the model keeps "
        "attacks from its gradients",
    )


_OF_ATTACKS = {
    "gradients": _check_gradients,
    "random_noise": _check_noise,
    "converged": _check_converged,
    "huge_eps": _check_huge_eps,
    "second_opinion": _check_second_opinion,
}
