"""The trust check `second_opinion`: do attacks of another kind fool what the attack left standing?

A model that masks gradients, or leads attacks towards a class that never wins, withstands one kind of attack only
(Croce & Hein 2020, arXiv 2003.01690; Tramer et al. 2020, arXiv 2002.08347; Pintor et al. 2022, arXiv 2106.09947).
"""

import torch
from torch import Tensor

from hf_robust_ft.attacks import APGD, Square
from hf_robust_ft.attacks.apgd import LogitsFn, checked_ball
from hf_robust_ft.attacks.apgd_run import ApgdRun
from hf_robust_ft.attacks.threat_model import ThreatModel
from hf_robust_ft.evaluation.trust_verdicts import TrustCheck, verdict

TARGETED = APGD(steps=10, loss="dlr_targeted", num_targets=3, random_start=False, select="fooled")
TWO_CLASSES = APGD(steps=10, loss="ce", random_start=False, select="fooled")  # where there is one class to aim at
SQUARE = Square(queries=300)
# Of the images, or a single one, which is as fine as an accuracy over them can be. No share tells masking from a weak
# attack: after ten untargeted steps on small honest networks of digits (64 images, 6 eps, 5 seeds) these attacks find
# more in 10 % of the cases, in 26 % after adversarial training, 3 to 9 points; networks that mask lose as little as 8.
# Where they find more, the accuracy is too high by that much, whatever the reason.
TOLERATED_SHARE = 0.01


def check_second_opinion(
    logits_fn: LogitsFn,
    pixels: Tensor,
    labels: Tensor,
    threat_model: ThreatModel,
    *,
    num_images: int,
    classes: Tensor,
    seed: int,
    batch_size: int,
) -> TrustCheck:
    """Attack what stands by targeted APGD (3 classes, 10 steps from the image) and, what still does, by Square.

    An image costs up to 30 gradients and 306 forwards.

    Args:
        pixels: (N, C, H, W), the correctly classified images that the attack in question leaves standing; N may be 0.
        labels: int64 (N,).
        num_images: over how many the accuracy is taken.
        classes: int64 (M,), those that occur as a label, of these images or others, or as a prediction.
    """
    if not len(pixels):
        return TrustCheck("second_opinion", True, None, "not checked: no image withstands the attack.")
    usable = UsableLogits(logits_fn, pixels[:batch_size], classes)
    by_targeted = by_square = stuck = 0
    for x, y in zip(pixels.split(batch_size), usable.numbers(labels).split(batch_size), strict=True):
        fooled, rose = _targeted(usable, x, y, threat_model)
        by_targeted, stuck = by_targeted + int(fooled.sum()), stuck + int((~rose).sum())
        if not fooled.all():
            generator = torch.Generator(x.device).manual_seed(seed)  # the same squares in every batch
            by_square += int(SQUARE(usable, x[~fooled], y[~fooled], threat_model, generator=generator).fooled.sum())
    found = by_targeted + by_square
    flaw = f"is too high, by {found / num_images:.1%} at least" if found else "counts images that nothing could test"
    return verdict(
        "second_opinion",
        _few(found, num_images) and _few(stuck, num_images),
        found / num_images,
        f"of the {len(pixels)} images out of {num_images} that withstand the attack at {threat_model}, targeted APGD "
        f"fools {by_targeted}, and a search that needs no gradients (Square, {SQUARE.queries} queries) {by_square} of "
        f"the others; for {stuck} the targeted loss never rose" + usable.told(),
        advice=f"the reported accuracy {flaw}: report the worst case of several attacks, and look for "
        "saturation, rounding or noise that hides the gradients of the logits",
    )


def _few(count: int, num_images: int) -> bool:
    return count <= 1 or count / num_images <= TOLERATED_SHARE


SMALLEST = torch.finfo(torch.float64).tiny
INVERSES = {
    "probabilities": ("the logarithm", lambda p: p.clamp(min=SMALLEST).log()),
    "sigmoids": ("the logits", lambda p: p.clamp(min=SMALLEST).log() - (1 - p).clamp(min=1e-16).log()),
    "tanhs": ("what tanh was taken of", lambda t: t.clamp(-1 + 1e-16, 1 - 1e-16).atanh()),
}


def _form(outputs: Tensor) -> str:
    """Logits may lie in [-1, 1] as well; what saturates there comes close to its ends."""
    if not (outputs.abs() <= 1).all():
        return "logits"
    if not (outputs >= 0).all():
        return "tanhs" if outputs.abs().max() > 0.999 else "logits"
    return "probabilities" if ((outputs.sum(1) - 1).abs() < 0.01).all() else "sigmoids"


class UsableLogits:
    """Outputs in a form that attacks can use: logarithms of probabilities, what sigmoid and tanh were taken of, and of
    `classes` only.

    All of these keep the order of the classes, so an output that is bounded for another reason may be taken for either.

    A class that is no image's label and no image's prediction can be held just below the top one, where an attack
    climbs towards it in vain. It is left out, unless fewer than two classes would remain.

    Args:
        logits_fn: pixels -> logits or probabilities (N, K).
        pixels: (N, C, H, W), by whose outputs probabilities are told.
        classes: int64 (M,), those that occur.

    Attributes:
        form: "probabilities", where each row of the outputs is in [0, 1] and sums to 1; "sigmoids", in [0, 1];
            "tanhs", in [-1, 1]; "logits".
        kept: int64 (M',), the classes of the logits, in their order.
        left_out: how many others there are.
    """

    def __init__(self, logits_fn: LogitsFn, pixels: Tensor, classes: Tensor):
        with torch.no_grad():
            outputs = logits_fn(pixels).float()
        self.logits_fn = logits_fn
        self.form = _form(outputs)
        self.kept = classes.to(pixels.device).unique()
        if len(self.kept) < 2:
            self.kept = torch.arange(outputs.shape[1], device=pixels.device)
        self.left_out = outputs.shape[1] - len(self.kept)

    def __call__(self, pixels: Tensor) -> Tensor:
        outputs = self.logits_fn(pixels)
        if self.form in INVERSES:
            outputs = INVERSES[self.form][1](outputs.double()).float()
        return outputs[:, self.kept]

    def told(self) -> str:
        """What the attacks were spared, in words; nothing for plain logits."""
        told = ""
        if self.form in INVERSES:
            told = f" (the outputs are {self.form}, of which they took {INVERSES[self.form][0]})"
        return told + (f" ({self.left_out} classes that never occur were left out)" if self.left_out else "")

    def numbers(self, labels: Tensor) -> Tensor:
        """The columns of classes (N,) in the logits."""
        return torch.searchsorted(self.kept, labels)


def _targeted(
    logits_fn: UsableLogits, pixels: Tensor, labels: Tensor, threat_model: ThreatModel
) -> tuple[Tensor, Tensor]:
    """Which images are fooled, and for which the loss rose towards one class at least: bool (N,) each."""
    ball, config = checked_ball(pixels, labels, threat_model), TARGETED if len(logits_fn.kept) > 2 else TWO_CLASSES
    fooled, rose = (torch.zeros_like(labels, dtype=torch.bool) for _ in range(2))
    for x, targets in config.starts(logits_fn, ball, labels):
        run = ApgdRun(config, logits_fn, ball, labels, x, targets)
        first_loss = run.best.loss
        for _ in range(config.steps):
            run.step()
        fooled, rose = fooled | run.result.fooled, rose | (run.best.loss > first_loss)
    return fooled, rose | fooled
