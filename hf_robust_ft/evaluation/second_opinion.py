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
from hf_robust_ft.attacks.until_fooled import attack_until_fooled
from hf_robust_ft.evaluation.trust_verdicts import TrustCheck, is_tolerated, other_attacks, verdict

TARGETED = APGD(steps=10, loss="dlr_targeted", num_targets=3, random_start=False, select="fooled")
TWO_CLASSES = APGD(steps=10, loss="ce", random_start=False, select="fooled")  # where there is one class to aim at
SQUARE = Square(queries=300)
# Where little enough falls to be tolerated, those that came nearest are tried once more: what stands by a hair is as
# wrong as what falls.
NEAREST, LONG_TARGETED = 4, APGD(steps=40, loss="dlr_targeted", num_targets=3, restarts=10, select="fooled")
LONG_TWO_CLASSES = APGD(steps=40, loss="ce", restarts=10, select="fooled")
LONG_SQUARE = Square(queries=2000)
# No share tells masking from a weak attack: after ten untargeted steps on small honest networks of digits (64 images,
# 6 eps, 5 seeds) these attacks find more in 10 % of the cases, in 26 % after adversarial training, 3 to 9 points;
# networks that mask lose as little as 8. Where they find more, the accuracy is too high by that much, whatever the
# reason.


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
    known: Tensor | None = None,
    protocol: str = "paper",
) -> TrustCheck:
    """Attack what stands by targeted APGD (3 classes, 10 steps from the image) and, what still does, by Square.

    An image costs up to 30 gradients and 306 forwards. Where all checks together find something, but no more than is
    tolerated, 4 images cost another 1200 gradients and 2034 forwards each.

    Args:
        pixels: (N, C, H, W), the correctly classified images that the attack in question leaves standing; N may be 0.
        labels: int64 (N,).
        num_images: over how many the accuracy is taken.
        classes: int64 (M,), those that occur as a label, of these images or others, or as a prediction.
        known: bool (N,), those that other checks fooled, which count as found.
        protocol: whose accuracy it is.
    """
    if not len(pixels):
        return TrustCheck("second_opinion", True, None, "Other attacks were not asked: no image withstands this one.")
    usable = UsableLogits(logits_fn, pixels[:batch_size], classes)
    y, fooled = usable.numbers(labels), torch.zeros_like(labels, dtype=torch.bool) if known is None else known.clone()
    rose, losses = fooled.clone(), torch.full(labels.shape, -torch.inf, device=labels.device)
    before = int(fooled.sum())
    for rows in _batches((~fooled).nonzero()[:, 0], batch_size):
        fooled[rows], rose[rows], losses[rows] = _targeted(usable, pixels[rows], y[rows], threat_model)
    by_targeted, stuck = int(fooled.sum()) - before, int((~rose).sum())
    for rows in _batches((~fooled).nonzero()[:, 0], batch_size):
        generator = torch.Generator(pixels.device).manual_seed(seed)  # the same squares in every batch
        fooled[rows] = SQUARE(usable, pixels[rows], y[rows], threat_model, generator=generator).fooled
    by_square, near = int(fooled.sum()) - by_targeted - before, ""
    if fooled.any() and is_tolerated(int(fooled.sum()), num_images):
        rows = losses.masked_fill(fooled, -torch.inf).argsort(descending=True, stable=True)[:NEAREST]
        for nearest in _batches(rows[~fooled[rows]], batch_size):
            fooled[nearest] = _at_length(usable, pixels[nearest], y[nearest], threat_model, seed)
        near = f", longer ones {int(fooled.sum()) - by_square - by_targeted - before} more"
    found = int(fooled.sum())
    flaw = f"is too high, by {found / num_images:.1%} at least" if found else "counts images that nothing could test"
    hidden = ", and look for saturation, rounding or noise that hides the gradients of the logits"
    if not by_square and not stuck:  # attacks by gradients found all
        hidden = ""
    return verdict(
        "second_opinion",
        is_tolerated(found, num_images) and is_tolerated(stuck, num_images),
        found / num_images,
        f"of the {len(pixels)} images out of {num_images} that withstand the attack at {threat_model}, "
        + (f"the other checks fool {before}, " if before else "")
        + f"targeted APGD fools {by_targeted}, and a search that needs no gradients (Square, {SQUARE.queries} queries) "
        f"{by_square} of the others{near}; for {stuck} the targeted loss never rose" + usable.told(),
        advice=f"the reported accuracy {flaw}: measure by {other_attacks(protocol)}{hidden}",
    )


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


def _batches(rows: Tensor, size: int) -> tuple[Tensor, ...]:
    """None for no rows, where `split` gives an empty one: many networks cannot reshape a batch of no images."""
    return rows.split(size) if len(rows) else ()


def _targeted(
    logits_fn: UsableLogits, pixels: Tensor, labels: Tensor, threat_model: ThreatModel
) -> tuple[Tensor, Tensor, Tensor]:
    """Which images are fooled, for which the loss rose towards one class at least (bool (N,) each), and the highest
    loss, (N,)."""
    ball, config = checked_ball(pixels, labels, threat_model), TARGETED if len(logits_fn.kept) > 2 else TWO_CLASSES
    fooled, rose = (torch.zeros_like(labels, dtype=torch.bool) for _ in range(2))
    highest = torch.full(labels.shape, -torch.inf, device=labels.device)
    for x, targets in config.starts(logits_fn, ball, labels):
        run = ApgdRun(config, logits_fn, ball, labels, x, targets)
        first_loss = run.best.loss
        for _ in range(config.steps):
            run.step()
        fooled, rose = fooled | run.result.fooled, rose | (run.best.loss > first_loss)
        highest = torch.fmax(highest, run.best.loss.float())
    return fooled, rose | fooled, highest


def _at_length(usable: UsableLogits, pixels: Tensor, labels: Tensor, threat_model: ThreatModel, seed: int) -> Tensor:
    """Which images fall to many random starts or a longer search without gradients, bool (N,)."""
    attack = LONG_TARGETED if len(usable.kept) > 2 else LONG_TWO_CLASSES
    generator = torch.Generator(pixels.device).manual_seed(seed)
    fooled = attack_until_fooled(attack, usable, pixels, labels, threat_model, generator=generator).fooled
    return fooled | LONG_SQUARE(usable, pixels, labels, threat_model, generator=generator.manual_seed(seed)).fooled
