"""How many images pass through the model in a run, and how: counted from the arguments, before anything runs."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from hf_robust_ft.attacks import APGD, Square
from hf_robust_ft.attacks.larger_eps import eps_phases
from hf_robust_ft.attacks.losses import get_loss, measuring_loss
from hf_robust_ft.attacks.sifted_targets import SiftedTargets
from hf_robust_ft.evaluation.checked_images import CHECKED_IMAGES
from hf_robust_ft.evaluation.convergence import AUTO, rounds_up_to
from hf_robust_ft.evaluation.output_checks import IMAGES_ALONE
from hf_robust_ft.evaluation.protocols import closing_attacks
from hf_robust_ft.evaluation.second_opinion import (
    LONG_SQUARE,
    LONG_TARGETED,
    LONG_TWO_CLASSES,
    NEAREST,
    SQUARE,
    TARGETED,
    TWO_CLASSES,
)
from hf_robust_ft.evaluation.trust_checks import LONGER, MOST_DRAWS
from hf_robust_ft.experiments.planning.training_length import TrainingLength
from hf_robust_ft.training.arguments import AdversarialTrainingArguments


@dataclass(frozen=True)
class Phase:
    """One part of a run, in passes of single images; at a low resolution a pass counts by its share of the pixels.

    Args:
        name: which part.
        images: visits, counted again each time.
        forward: passes without a gradient.
        input_gradient: passes with the gradient of the pixels: attack steps.
        training: passes with the gradient of the weights.
        at_most: whether these are upper bounds, because images that are fooled are not attacked again.
        head_alone: whether `training` passes have the gradient of the head's weights alone.
    """

    name: str
    images: int
    forward: int = 0
    input_gradient: int = 0
    training: int = 0
    at_most: bool = False
    head_alone: bool = False

    @property
    def is_probes_training(self) -> bool:
        """Whether it is RoLI's first training, of the head alone."""
        return self.head_alone and self.training > 0


class Measuring(NamedTuple):
    """What the evaluation of a task costs.

    Args:
        grid_attack: the phases of attacks at every eps, of (name, arguments, visits, classes).
        trust_checks: those of the trust checks, of (arguments, test images, classes).
    """

    grid_attack: Callable[..., Iterator[Phase]]
    trust_checks: Callable[..., Iterator[Phase]]


def attack_passes(attack: APGD | Square, num_classes: int) -> tuple[int, int]:
    """Passes of one image with an input gradient, and without any gradient.

    >>> attack_passes(APGD(steps=7), num_classes=100)
    (7, 1)
    """
    if isinstance(attack, Square):
        return 0, attack.queries + 1
    if isinstance(attack, SiftedTargets):
        return attack.passes(num_classes)
    loss = get_loss(attack.loss)
    targeted = loss.targeted
    runs = attack.restarts * (min(attack.num_targets, num_classes - 1) if targeted else 1)
    return runs * attack.steps, runs * len(eps_phases(attack)) + targeted + loss.needs_reference


def evaluations(args: AdversarialTrainingArguments, length: TrainingLength) -> int:
    """How often the validation split is evaluated during training."""
    count = int(bool(args.eval_on_start))
    if args.eval_strategy.value == "epoch":
        return count + sum(epoch >= args.eval_delay for epoch in range(1, length.epochs + 1))
    if args.eval_strategy.value == "steps":
        every = args.eval_steps if args.eval_steps >= 1 else math.ceil(length.steps * args.eval_steps)
        every = int(every)
        return count + sum(step >= args.eval_delay for step in range(every, length.steps + 1, every))
    return count


def phases(
    args: AdversarialTrainingArguments,
    length: TrainingLength,
    sizes: Mapping[str, int],
    num_classes: int,
    measuring: "Measuring | None" = None,
    attacked_test: bool | None = None,
) -> Iterator[Phase]:
    """The parts of `hf-robust-ft train`, in order.

    Args:
        sizes: images of `validation` and `test`, and of `train` with `autolora`.
        measuring: the task's; a classifier's by default.
        attacked_test: whether the test split is attacked in the end; by default as `robust_eval` says.
    """
    measuring = measuring or OF_IMAGES
    more = (args.passes_under_attack - 1) * length.under_attack + args.passes_under_attack * length.perturbed_images
    training = round((1 + args.passes_beside) * length.full_images + more)
    taught = round(_teachers_forwards(args, length))
    bounded = length.at_most and (more > 0 or taught > 0)
    yield Phase("training", length.images, forward=taught, training=training, at_most=bounded)
    if args.passes_beside:
        visits = length.epochs * sizes["train"]
        yield Phase("accuracy of AutoLoRA's branch", visits, forward=visits)
    passes = [
        (attack_passes(replace(args.train_attack, steps=steps), num_classes), images)
        for steps, images in length.attack_steps.items()
    ]
    yield Phase(
        f"attack in training (eps > 0 in {length.attacked_steps} of {length.steps} steps)",
        length.attacked_images,
        forward=round(sum(forwards * images for (_, forwards), images in passes)),
        input_gradient=round(sum(gradients * images for (gradients, _), images in passes)),
        at_most=length.at_most,
    )
    if length.guarded_images:
        images, full = round(length.guarded_images), replace(args.train_attack, loss=measuring_loss(args.attack_loss))
        gradients, forwards = (each * images for each in attack_passes(full, num_classes))
        name = "checks of attack_guard while silent"
        yield Phase(name, images, forward=forwards, input_gradient=gradients, at_most=length.at_most)
    yield _first_check(args, length, num_classes)
    visits = evaluations(args, length) * sizes["validation"]
    if visits:
        yield Phase("validation", visits, forward=visits)
        if args.robust_eval == "epoch":
            yield from measuring.grid_attack("attack in validation", args, visits, num_classes)
    yield Phase("test", sizes["test"], forward=sizes["test"])
    if args.robust_eval != "no" if attacked_test is None else attacked_test:
        yield from measuring.grid_attack("attack in test", args, sizes["test"], num_classes)
        yield from measuring.trust_checks(args, sizes["test"], num_classes)


def _first_check(args: AdversarialTrainingArguments, length: TrainingLength, num_classes: int) -> Phase:
    checked = min(2, args.train_batch_size) * args.world_size
    # Once for the number of classes, with the gradient where images are attacked, and then by an attack.
    gradients, forwards = 0, 1
    if args.threat_model.eps > 0:
        gradients, forwards = attack_passes(APGD(steps=1), num_classes)
        gradients += 1
    forward = forwards * checked
    if args.low_resolution < 1:  # whether the model takes it
        forward += math.ceil(args.pixel_share_at(0.0) * checked)
    if args.has_teacher:  # whether the teacher knows the classes
        forward += min(args.train_batch_size * args.world_size, length.images)
    return Phase("check of the first batch", checked, forward=forward, input_gradient=gradients * checked)


def _teachers_forwards(args: AdversarialTrainingArguments, length: TrainingLength) -> float:
    """Of all training images; where it is open how many are attacked, as if all took the dearer way."""
    attacked, others = args.teachers_passes(attacked=True), args.teachers_passes(attacked=False)
    again = attacked * length.perturbed_images
    if length.at_most:
        return max(attacked, others) * length.full_images + again
    return again + attacked * length.under_attack + others * (length.full_images - length.under_attack)


def _grid_attack(name: str, args: AdversarialTrainingArguments, visits: int, num_classes: int) -> Iterator[Phase]:
    """Upper bounds of an evaluation's attacks; each brings a forward that looks whether its examples are found again.

    After the first round each attack is tried once an image, and again at the next smaller budget whenever it succeeds.
    It may succeed at all budgets but the smallest, at whichever attack is dearest, and is tried no more at the last.
    """
    budgets = len(args.evaluation_grid) - 1
    if not budgets:
        return
    gradients, forwards = attack_passes(args.eval_attack, num_classes)
    yield _attack_phase(f"{name} ({budgets} budgets)", visits, budgets * gradients, budgets * forwards + 1)
    later = [(f"{steps} steps", replace(args.eval_attack, steps=steps)) for steps in _later_rounds(args)]
    later += [(str(attack), attack) for attack in closing_attacks(args.eval_protocol, args.norm, num_classes)]
    passes = [attack_passes(attack, num_classes) for _, attack in later]
    for (label, _), (gradients, forwards) in zip(later, passes, strict=True):
        yield _attack_phase(f"{name}, {label}", visits, gradients, forwards + 1)
    if passes and budgets > 1:
        dearest = (max(counts) for counts in zip(*passes, strict=True))
        yield _attack_phase(f"{name}, again at smaller budgets", visits, *((budgets - 1) * each for each in dearest))


def _later_rounds(args: AdversarialTrainingArguments) -> list[int]:
    return rounds_up_to(args.eval_attack_steps_limit)[1:] if args.eval_attack_steps == AUTO else []


def _attack_phase(name: str, visits: int, gradients: int, forwards: int) -> Phase:
    return Phase(name, visits, forward=forwards * visits, input_gradient=gradients * visits, at_most=True)


def _trust_checks(args: AdversarialTrainingArguments, test_images: int, num_classes: int) -> Iterator[Phase]:
    """Those of `run_trust_checks`: three budgets, five times the steps, a huge budget, noise, clean passes, others."""
    if len(args.evaluation_grid) == 1:
        return
    images = min(CHECKED_IMAGES * args.world_size, test_images)
    attack = args.eval_attack
    gradients, forwards = attack_passes(attack, num_classes)
    longer = 0 if args.eval_attack_steps == AUTO else LONGER  # the rounds tell of it
    attacks = (TARGETED, LONG_TARGETED) if num_classes > 2 else (TWO_CLASSES, LONG_TWO_CLASSES)
    targeted, long = (attack_passes(attack, num_classes) for attack in attacks)
    nearest = min(NEAREST * args.world_size, images)
    by_themselves = 2 * min(IMAGES_ALONE * args.world_size, images)
    yield Phase(
        "trust checks",
        images,
        forward=(4 + min(attack.steps, MOST_DRAWS) + (4 + bool(longer)) * forwards) * images
        + (targeted[1] + SQUARE.queries) * images
        + (long[1] + LONG_SQUARE.queries + 1) * nearest
        + by_themselves,
        input_gradient=(1 + (4 + longer) * gradients + targeted[0]) * images + long[0] * nearest,
        at_most=True,
    )


OF_IMAGES = Measuring(_grid_attack, _trust_checks)
