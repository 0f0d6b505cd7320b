"""TRADES (Zhang et al. 2019, arXiv 1901.08573): as `at`, but on the images, plus beta times KL(p(x) ‖ p(xa))."""

from torch import Tensor

from hf_robust_ft.attacks.losses import kl_divergence
from hf_robust_ft.training.objectives.passes import Loss, Passes


def trades(passes: Passes, clean: Tensor, adversarial: Tensor | None, *, beta: float) -> Loss:
    """L(x) + beta * mean KL(p(x) ‖ p(xa)), with a gradient through both; L(x) without an attack. See `Objective`."""
    before = passes(clean)
    log_p = before.logits.log_softmax(1)  # also where there is no attack yet: a model without logits is told at once
    if adversarial is None or beta == 0:
        nothing = before.loss.new_zeros(())
        return Loss(before.loss, before.outputs, {"loss_clean": before.loss, "loss_kl": nothing})
    after = passes(adversarial)
    kl = passes.mean(kl_divergence(after.logits, log_p))
    return Loss(before.loss + beta * kl, after.outputs, {"loss_clean": before.loss, "loss_kl": kl})
