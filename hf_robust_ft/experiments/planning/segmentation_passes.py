"""What the evaluation of a segmentation model costs: every image is attacked at every eps, however many pixels fall."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from hf_robust_ft.attacks import APGD
from hf_robust_ft.evaluation.convergence import AUTO, rounds_up_to
from hf_robust_ft.evaluation.output_checks import IMAGES_ALONE
from hf_robust_ft.evaluation.segmentation.evaluate import CHECKED_IMAGES
from hf_robust_ft.evaluation.segmentation.protocols import resolve_attacks
from hf_robust_ft.evaluation.segmentation.trust_checks import (
    AT_HUGE_EPS,
    COMPARED_IMAGES,
    LONGER,
    OTHER_LOSSES,
    QUERIES,
)
from hf_robust_ft.evaluation.trust_checks import MOST_DRAWS
from hf_robust_ft.experiments.planning.passes import Measuring, Phase, attack_passes
from hf_robust_ft.training.arguments import AdversarialTrainingArguments


def _attacks(args: AdversarialTrainingArguments) -> list[APGD]:
    """Those of the evaluation, with steps "auto" of the first round; which loss they climb costs nothing."""
    steps = args.eval_attack_steps if args.eval_protocol == "paper" else None  # others have steps of their own
    return resolve_attacks(args.eval_protocol, None, steps, args.norm)


def _passes(attacks: Sequence[APGD]) -> tuple[int, int]:
    """Of one image, with an input gradient and without, under all attacks."""
    gradients, forwards = zip(*(attack_passes(attack, 2) for attack in attacks), strict=True)
    return sum(gradients), sum(forwards)


def _grid_attack(name: str, args: AdversarialTrainingArguments, visits: int, num_classes: int) -> Iterator[Phase]:
    budgets = len(args.evaluation_grid) - 1
    attacks = _attacks(args)
    doubled = args.eval_attack_steps == AUTO and args.eval_protocol == "paper"
    for steps in rounds_up_to(args.eval_attack_steps_limit) if doubled else [attacks[0].steps]:
        gradients, forwards = _passes([replace(attack, steps=steps) for attack in attacks])
        if budgets:
            yield Phase(
                f"{name} ({budgets} budgets, {steps} steps)",
                visits,
                forward=visits * (budgets * forwards + doubled),
                input_gradient=visits * budgets * gradients,
                at_most=doubled,
            )


def _trust_checks(args: AdversarialTrainingArguments, test_images: int, num_classes: int) -> Iterator[Phase]:
    """Those of `run_segmentation_checks`."""
    if len(args.evaluation_grid) == 1:
        return
    images, attacks = min(CHECKED_IMAGES, test_images), _attacks(args)
    own = {attack.loss for attack in attacks}
    others = [replace(attacks[0], loss=loss, larger_eps=False) for loss in OTHER_LOSSES if loss not in own]
    longer = [replace(attack, steps=LONGER * attack.steps) for attack in attacks]
    gradients, forwards = _passes([*longer, AT_HUGE_EPS, *others])
    compared = 2 * min(COMPARED_IMAGES, images) + min(IMAGES_ALONE, images)
    yield Phase(
        "trust checks",
        images,
        forward=images * (forwards + 1 + min(attacks[0].steps, MOST_DRAWS) + QUERIES + 2) + compared,
        input_gradient=images * (gradients + 1),
        at_most=True,
    )


OF_MASKS = Measuring(_grid_attack, _trust_checks)
