"""FARE (Schlarmann et al., ICML 2024, arXiv 2402.12336): an encoder whose features stay where they were, under attack.

    mean ‖phi(xa) - phi_0(x)‖²,   xa climbing the same distance

phi are the features that the head is given, phi_0 those of the network that training starts from. No label has a say,
and the head stands still: what stood on the encoder before (a zero-shot head, another model) stands on it afterwards.

Checked against the authors' code (train/adversarial_training_clip.py, and the command in their README): the square is
summed over features and not divided by their number; features are not normalised; the frozen ones are of clean images,
in evaluation mode; the attack is in evaluation mode, from a uniform start. Theirs is PGD with momentum, ours APGD.
Their phi is CLIP's embedding; ours, where the last projection is folded into the head, the features before it.
"""

from typing import TYPE_CHECKING

from torch import Tensor

from hf_robust_ft.attacks.losses import squared_distance
from hf_robust_ft.training.objectives.passes import Loss, Passes

if TYPE_CHECKING:  # it reads models, and `tuning`, which does that, is imported before this package
    from hf_robust_ft.training.objectives.teacher import Teacher


def fare(passes: Passes, clean: Tensor, adversarial: Tensor | None, *, teacher: "Teacher") -> Loss:
    """mean ‖phi(xa) - phi_0(x)‖²; with x in the place of xa without an attack, for there is no loss of labels.

    See `Objective`.
    """
    after = passes(clean if adversarial is None else adversarial)
    moved = squared_distance(teacher.students.take(), teacher.features(passes.inputs_of(clean)))
    return Loss(passes.mean(moved), after.outputs)
