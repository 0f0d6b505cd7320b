"""PMG-AFT (Wang et al., CVPR 2024, arXiv 2401.04350): as `at`, held to the frozen pretrained network and to itself.

    L(xa) + alpha * mean KL(p(xa) ‖ p_0(xa)) + beta * mean KL(p(xa) ‖ p(x))

p_0 is the network that training starts from. Checked against the authors' code (PMG_AFT.py): both directions of KL, the
gradient through p(x), no weights on the terms, an attack on cross-entropy from a uniform start. Theirs differs in two
ways that no weight makes up for: its KL is summed over the batch of 256, and its softmax is of bare cosines, without
CLIP's temperature. Ours are means of the model's own probabilities, as of every objective here.
"""

from typing import TYPE_CHECKING

from torch import Tensor

from hf_robust_ft.attacks.losses import kl_divergence
from hf_robust_ft.training.objectives.passes import Loss, Passes, logits_of

if TYPE_CHECKING:  # it reads models, and `tuning`, which does that, is imported before this package
    from hf_robust_ft.training.objectives.teacher import Teacher


def pmg_aft(
    passes: Passes, clean: Tensor, adversarial: Tensor | None, *, alpha: float, beta: float, teacher: "Teacher"
) -> Loss:
    """L(xa) + alpha * mean KL(p(xa) ‖ p_0(xa)) + beta * mean KL(p(xa) ‖ p(x)); L(x) without an attack. See `Objective`.

    Label smoothing and a loss function of the user's reach L alone.
    """
    after = passes(clean if adversarial is None else adversarial)
    log_p = after.logits.log_softmax(1)
    total, from_teacher, from_clean = after.loss, *after.loss.new_zeros(2)
    if adversarial is not None and alpha != 0:
        frozen = logits_of(passes.outputs_of(teacher, adversarial)).float()
        from_teacher = passes.mean(kl_divergence(frozen, log_p))
        total = total + alpha * from_teacher
    if adversarial is not None and beta != 0:
        from_clean = passes.mean(kl_divergence(passes(clean).logits, log_p))
        total = total + beta * from_clean
    parts = {"loss_adversarial": after.loss, "loss_teacher": from_teacher, "loss_kl": from_clean}
    return Loss(total, after.outputs, parts)
