"""How the accuracy-eps curve is measured: protocols, each a function of one batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real

import torch
from torch import Tensor

from hf_robust_ft.attacks import APGD, Square, attack_until_fooled, smallest_fooling_eps
from hf_robust_ft.attacks.apgd import LogitsFn
from hf_robust_ft.attacks.losses import check_measures, get_loss
from hf_robust_ft.attacks.sifted_targets import SiftedTargets
from hf_robust_ft.attacks.step_rules import take_rows
from hf_robust_ft.attacks.threat_model import ThreatModel, default_epsilons, format_eps, parse_eps
from hf_robust_ft.attacks.until_fooled import FollowUp, evaluate_images
from hf_robust_ft.metrics.robustness.curve import check_epsilons
from hf_robust_ft.provenance.choices import check_choice


@dataclass(frozen=True)
class Outcome:
    """What a protocol found for a batch.

    Attributes:
        smallest_eps: (N,) float64, the smallest eps found to fool each image; 0 if misclassified as it is, infinite
            if nothing up to eps_g fools it.
        wrong_classes: (N,) int64, the class predicted there; the label where nothing was found.
        adversarial: (N, C, H, W), the example of the largest budget that was tried on each image and found, or the
            image itself.
    """

    smallest_eps: Tensor
    wrong_classes: Tensor
    adversarial: Tensor


def evaluation_attack(steps: int = 10, loss: str = "ce", norm: str = "Linf") -> APGD:
    """The attack of an evaluation: from the clean image, keeping any misclassified point it visits.

    Under Linf it is the paper's. Under L1, of which the paper has nothing, it begins with larger eps as AutoAttack's
    does: without, it misses a fifth of the images or more.

    Raises:
        ValueError: a loss that looks for no errors.
    """
    check_measures(loss)
    return APGD(steps=steps, loss=loss, random_start=False, select="fooled", larger_eps=norm == "L1")


def resolve_epsilons(epsilons: Sequence[float | str] | None, threat_model: ThreatModel) -> list[float]:
    """The evaluation grid: `epsilons`, or the default (the paper's every 1/255 up to eps under Linf).

    Raises:
        ValueError: not a list, or not increasing from 0 to the threat model's eps.
    """
    if epsilons is None:
        grid = default_epsilons(threat_model.eps, threat_model.norm)
    else:
        if isinstance(epsilons, (str, Real)):
            raise ValueError(f"epsilons must be a list of budgets, got {epsilons!r} alone: put it in brackets.")
        for eps in epsilons:
            if isinstance(eps, str) and "," in eps:
                raise ValueError(
                    f"epsilons holds {eps!r}: give each budget by itself, without commas, as 0 4/255 8/255."
                )
        grid = [parse_eps(eps) for eps in epsilons]
    check_epsilons(grid)
    if abs(grid[-1] - threat_model.eps) > 1e-9:
        raise ValueError(
            f"epsilons must end at the threat model's eps ({format_eps(threat_model.eps)}), since expected robustness "
            f"is a mean over [0, eps]; the last one is {format_eps(grid[-1])}. Change the grid together with eps."
        )
    return grid


def attack_on_grid(
    logits_fn: LogitsFn,
    pixels: Tensor,
    labels: Tensor,
    *,
    threat_model: ThreatModel,
    epsilons: Sequence[float],
    attack: APGD,
    generator: torch.Generator | None = None,
    clean_predictions: Tensor | None = None,
    survivors_only: bool = True,
) -> Outcome:
    """An attack at each eps of the grid, on the images that the smaller ones did not fool.

    With `survivors_only` off every image is attacked to the end at every eps, in vain if it was fooled before: the
    same result, at a cost that does not depend on the data. `clean_predictions` (N,), if known, save a forward.
    """
    predictions, clean = clean_predictions, None
    if predictions is None and survivors_only and len(epsilons) > 1:
        predictions, clean = evaluate_images(attack, logits_fn, pixels, labels)
    elif predictions is None:
        with torch.no_grad():
            predictions = logits_fn(pixels).argmax(1)
    smallest = torch.where(predictions == labels, torch.inf, 0.0).double()
    adversarial = pixels
    for eps in epsilons[1:]:
        standing = smallest.isinf()
        rows = standing.nonzero()[:, 0] if survivors_only else torch.arange(len(labels), device=labels.device)
        if len(rows) == 0:
            break
        if survivors_only:
            first = None if clean is None else take_rows(clean, rows)
            found = attack_until_fooled(
                attack, logits_fn, pixels[rows], labels[rows], threat_model, eps=eps, generator=generator, clean=first
            )
        else:
            found = attack(logits_fn, pixels, labels, threat_model, eps=eps, generator=generator)
        new = found.fooled & standing[rows]
        smallest = smallest.index_put((rows[new],), torch.tensor(eps, dtype=torch.float64, device=smallest.device))
        predictions = predictions.index_copy(0, rows[new], found.predictions[new])
        adversarial = adversarial.index_copy(0, rows[new], found.adversarial[new])
    return Outcome(smallest, predictions, adversarial)


def attack_to_the_minimum(
    logits_fn: LogitsFn,
    pixels: Tensor,
    labels: Tensor,
    *,
    threat_model: ThreatModel,
    epsilons: Sequence[float],
    attack: APGD,
    generator: torch.Generator | None = None,
) -> Outcome:
    """The smallest fooling eps of each image, by `smallest_fooling_eps`."""
    found = smallest_fooling_eps(
        logits_fn,
        pixels,
        labels,
        threat_model,
        epsilons=epsilons,
        attack=attack,
        generator=generator,
    )
    return Outcome(found.eps, found.predictions, found.adversarial)


def attack_standing(
    logits_fn: LogitsFn,
    pixels: Tensor,
    labels: Tensor,
    *,
    smallest_eps: Tensor,
    wrong_classes: Tensor,
    threat_model: ThreatModel,
    epsilons: Sequence[float],
    attack: APGD | Square,
    by_distance: bool = False,
    generator: torch.Generator | None = None,
) -> Outcome:
    """Attack each image again at the largest eps of the grid that it withstood so far, and down from there.

    Below an eps that an image withstands it is not attacked again: what the attack misses in a ball it seldom finds
    in a smaller one. So a round costs hardly more than one attack an image, whatever the grid.

    Args:
        smallest_eps, wrong_classes: (N,), what was found before, as in `Outcome`.
        by_distance: enter the distance of what is found instead of the eps it was looked for at.

    Returns:
        All as it is now, `adversarial` where this found something; no smallest eps is above the one before.
    """
    adversarial = pixels
    grid = torch.tensor(list(epsilons), dtype=torch.float64, device=labels.device)
    rows = torch.arange(len(labels), device=labels.device)
    while True:
        index = torch.searchsorted(grid, smallest_eps[rows])
        rows, index = rows[index > 1], index[index > 1]
        if len(rows) == 0:
            return Outcome(smallest_eps, wrong_classes, adversarial)
        budgets = grid[index - 1]
        if isinstance(attack, FollowUp):
            attacked = attack.until_fooled
        else:
            attacked = attack if isinstance(attack, Square) else partial(attack_until_fooled, attack)
        found = attacked(logits_fn, pixels[rows], labels[rows], threat_model, eps=budgets, generator=generator)
        fooled = found.fooled
        if by_distance:
            budgets = threat_model.ball(pixels[rows]).distance(found.adversarial).minimum(budgets)
        rows = rows[fooled]
        smallest_eps = smallest_eps.index_copy(0, rows, budgets[fooled])
        wrong_classes = wrong_classes.index_copy(0, rows, found.predictions[fooled])
        adversarial = adversarial.index_copy(0, rows, found.adversarial[fooled])


@dataclass(frozen=True)
class Protocol:
    """A way to measure the curve.

    Attributes:
        measure: `attack_on_grid` or `attack_to_the_minimum`.
        description: in the words of a card.
        by_distance: whether its smallest eps are distances of what was found, or points of the grid.
        closing: attacks of other kinds on what stands once the steps of the first are doubled until the accuracy
            settles; with any, the steps always are.
    """

    measure: Callable[..., Outcome]
    description: str
    by_distance: bool = False
    closing: tuple[APGD | Square, ...] = ()


PROTOCOLS = {
    "paper": Protocol(
        attack_on_grid,
        "Protocol *paper* (arXiv 2509.23325): an attack at each eps of the grid, in the paper every 1/255 with "
        "APGD-CE-10, and the trapezoid rule over the grid. An image misclassified at one eps counts as misclassified "
        "at every larger one and is not attacked again.",
    ),
    "exact": Protocol(
        attack_to_the_minimum,
        "Protocol *exact*: for each image the smallest budget found to fool it, an upper bound: an attack at twice the "
        "largest eps, a descent to the decision boundary with a budget of its own for each image, the attack again at "
        "the next smaller points of the grid, shrinking of what was found, and a second descent. Its curve is "
        "seldom above the paper protocol's at any image, and the mean over eps has no quadrature error.",
        by_distance=True,
    ),
    "reliable": Protocol(
        attack_on_grid,
        "Protocol *reliable*: the worst case of four attacks for each image. First as protocol *paper*, its steps "
        "doubled until the accuracy settles; on what still stands, targeted APGD towards the three likeliest wrong "
        "classes, from where cross-entropy leads, and from the image towards the one of nine that a few steps come "
        "nearest to; then Square, which needs no gradients. Each is tried at the largest eps of the grid that an image "
        "withstands, and down from there while it succeeds.",
        closing=(FollowUp(steps=30, num_targets=3, kept=3), SiftedTargets(steps=30), Square(queries=300)),
    ),
}


RECOMMENDED = "reliable"  # for a number that others are to trust


def get_protocol(name: str) -> Protocol:
    """Look a protocol up by name.

    Raises:
        ValueError: unknown name; the message lists the valid ones.
    """
    check_choice("protocol", name, PROTOCOLS, "protocols")
    return PROTOCOLS[name]


def check_on_grid(eval_protocol: str) -> None:
    """Raise a ValueError for a protocol that a Trainer cannot measure by."""
    if get_protocol(eval_protocol).by_distance:
        raise ValueError(
            f"A Trainer measures at the points of a grid, which eval_protocol={eval_protocol!r} does not: choose "
            f"{' or '.join(name for name, each in PROTOCOLS.items() if not each.by_distance)}, and measure the saved "
            f"checkpoint with hf-robust-ft evaluate --protocol {eval_protocol}."
        )


def closing_attacks(protocol: str, norm: str, num_labels: int) -> list[APGD | Square]:
    """Those of a protocol, as `norm` and a model of so many classes allow.

    With two classes the only wrong one is where untargeted attacks go, too: there is no targeted one. Under L1 the
    larger eps come first, so there is none that goes on from where another leads.
    """
    larger_eps, attacks = norm == "L1", []
    for attack in get_protocol(protocol).closing:
        if isinstance(attack, APGD):
            if get_loss(attack.loss).targeted:
                if num_labels < 3:
                    continue
                attack = replace(attack, num_targets=min(attack.num_targets, num_labels - 1))
            if larger_eps and isinstance(attack, FollowUp):
                continue
            attack = replace(attack, larger_eps=larger_eps)
        attacks.append(attack)
    return attacks
