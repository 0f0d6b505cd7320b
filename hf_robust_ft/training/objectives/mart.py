"""MART (Wang et al., ICLR 2020): as `at`, plus the likeliest wrong class's margin, and a KL weighted by 1 - p_y(x)."""

import math

import torch
from torch import Tensor

from hf_robust_ft.attacks.losses import kl_divergence
from hf_robust_ft.training.objectives.passes import Loss, Passes

# The authors' 1.0001. It caps the margin at 9.21 and lets its gradient vanish for images that are hopelessly wrong.
MARGIN_CAP = 1e-4


def mart(passes: Passes, clean: Tensor, adversarial: Tensor | None, *, beta: float) -> Loss:
    """L(xa) + mean m(xa) + beta * mean [KL(p(x) ‖ p(xa)) * (1 - p_y(x))], the weight with a gradient, too.

    Without an attack it is L(x): the margin m enters together with the attack, or a schedule's first epochs would not
    be plain training. Label smoothing and a loss function of the user's reach L alone. See `Objective`.
    """
    after = passes(clean if adversarial is None else adversarial)
    logits, nothing = after.logits, after.loss.new_zeros(())
    if adversarial is None:
        parts = {"loss_adversarial": after.loss, "loss_margin": nothing, "loss_kl": nothing}
        return Loss(after.loss, after.outputs, parts)
    margin = passes.mean(margin_of_wrong_class(logits, passes.labels))
    total, kl = after.loss + margin, nothing
    if beta != 0:
        log_p = passes(clean).logits.log_softmax(1)
        wrong = -log_p.gather(1, passes.labels[:, None])[:, 0].expm1()
        kl = passes.mean(kl_divergence(logits, log_p) * wrong)
        total = total + beta * kl
    return Loss(total, after.outputs, {"loss_adversarial": after.loss, "loss_margin": margin, "loss_kl": kl})


def margin_of_wrong_class(logits: Tensor, labels: Tensor) -> Tensor:
    """-log(1 - p_k + 1e-4), (N,), of the likeliest class k that is not the label: from 0 to 9.21.

    Args:
        logits: (N, K), K at least 2; finite gradients at any size of them.
        labels: (N,) class indices.
    """
    logits = logits.float()
    is_label = labels[:, None] == torch.arange(logits.shape[1], device=logits.device)
    likeliest = logits.masked_fill(is_label, -torch.inf).argmax(1, keepdim=True)
    others = logits.scatter(1, likeliest, -torch.inf)
    log_rest = others.logsumexp(1) - logits.logsumexp(1)  # log(1 - p_k), exact where p_k rounds to 1
    return -torch.logaddexp(log_rest, torch.full_like(log_rest, math.log(MARGIN_CAP)))
