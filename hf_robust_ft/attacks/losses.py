"""What an attack climbs: objectives of logits (N, K) and labels (N,), one value (N,) an image.

Those of one label a pixel stand in `dense_losses`, and in the same table.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_robust_ft.attacks import dense_losses
from hf_robust_ft.attacks.cross_entropy import log_cross_entropy

_TINY = 1e-12  # in denominators: logits that are all equal must not divide by zero


def dlr(logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """Difference of logits ratio (Croce & Hein 2020, arXiv 2003.01690, equation 6): blind to the logits' scale.

    -(z_y - max_{i != y} z_i) / (z_(1) - z_(3)), with z_(k) the k-th largest logit; at least 0 once misclassified.
    """
    logits = logits.float()
    ranked = logits.topk(3, dim=1).values
    spread = ranked[:, 0] - ranked[:, 2]
    return margin(logits, labels) / (spread + _TINY)


def dlr_targeted(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Targeted difference of logits ratio (arXiv 2003.01690, equation 7), towards the classes `targets` (N,).

    -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2). With three classes there is no fourth logit, and z_(3) stands for it.
    """
    logits = logits.float()
    ranked = logits.topk(min(4, logits.shape[1]), dim=1).values
    spread = ranked[:, 0] - (ranked[:, 2] + ranked[:, -1]) / 2
    towards = logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None])
    return towards[:, 0] / (spread + _TINY)


def margin(logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """How far the highest logit of another class lies above the label's, (N,)."""
    logits = logits.float()
    is_label = labels[:, None] == torch.arange(logits.shape[1], device=logits.device)
    others = logits.masked_fill(is_label, -torch.inf).amax(1)
    return others - logits.gather(1, labels[:, None])[:, 0]


def kl_divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """KL(q ‖ p) of the answers p that are given from those q that were, (N,), in float32; exactly 0 where p is q.

    Args:
        logits: (N, K), of p.
        reference: (N, K), the logarithm of q.
    """
    return F.kl_div(logits.float().log_softmax(1), reference, reduction="none", log_target=True).sum(1)


def kl_from_clean(logits: Tensor, labels: Tensor, reference: Tensor) -> Tensor:
    """How far answers have moved from the clean image's, whatever the label says: TRADES' attack (arXiv 1901.08573)."""
    return kl_divergence(logits, reference)


def squared_distance(features: Tensor, reference: Tensor) -> Tensor:
    """The squared L2 distance of features (N, D) from those that they should be, summed over D, (N,), in float32."""
    return (features.float() - reference).square().sum(1)


def features_from_reference(features: Tensor, labels: Tensor, reference: Tensor) -> Tensor:
    """How far an encoder's features have moved, whatever the label says: FARE's attack (arXiv 2402.12336)."""
    return squared_distance(features, reference)


def own_loss(losses: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """What a detection model's own loss is of each image, (N,) of (N, 1), as a `PixelDetector` answers."""
    return losses[:, 0]


@dataclass(frozen=True)
class AttackLoss:
    """A loss as an attack uses it.

    Attributes:
        name: its key in `LOSSES`.
        objective: (logits, labels, targets) -> (N,), what is compared and differentiated; `targets` are classes (N,),
            or with `needs_reference` what is compared with, as the logarithm of the clean images' probabilities (N, K),
            or with `by_progress` the share of the steps that are done.
        value: what is compared -> the loss as it is reported, an increasing function.
        targeted: whether the objective needs target classes.
        needs_reference: whether it compares with the clean image's answer: for training, where no label decides what
            counts. At the clean image it has no gradient, so such an attack starts elsewhere.
        of_features: whether it is of the features (N, D) that the head makes the logits of, in their place, compared
            with others (N, D); then the function that is attacked has both as its `features` and `reference`.
        min_classes: how many classes it is defined for at least.
        dense: whether logits are (N, K, H, W) and labels (N, H, W), below 0 where a pixel counts nowhere.
        by_progress: whether it changes from step to step.
        compared: (logits, labels) -> (N,), what points are compared by where that is not the objective: one that
            leaves out what is already wrong falls with each success.
        given: whether what is attacked answers with its own loss (N, 1), of labels that it knows, as a
            `PixelDetector` does. No one answer is right or wrong then, so no image counts as fooled.
    """

    name: str
    objective: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    value: Callable[[Tensor], Tensor] = lambda objective: objective
    targeted: bool = False
    needs_reference: bool = False
    of_features: bool = False
    min_classes: int = 2
    dense: bool = False
    by_progress: bool = False
    compared: Callable[[Tensor, Tensor], Tensor] | None = None
    given: bool = False

    @property
    def reports_cross_entropy(self) -> bool:
        """Whether the loss of an attack's result is cross-entropy, of the labels or of their mean over pixels."""
        return self.name in ("ce", "pixel_ce") or self.compared is dense_losses.pixel_ce

    def check_logits(self, logits: Tensor, labels: Tensor) -> None:
        """Raise a ValueError for logits that are not of the loss's shape, or of too few classes."""
        if self.dense and (logits.ndim != 4 or logits.shape[2:] != labels.shape[1:]):
            raise ValueError(
                f"The loss {self.name!r} is of one label a pixel, (N, K, H, W) logits of (N, H, W) labels; got logits "
                f"{tuple(logits.shape)} of labels {tuple(labels.shape)}. PixelSegmenter(model, pixel_space, "
                "size=labels.shape[1:]) makes them so; for a classifier use loss='ce'."
            )
        if not self.dense and logits.ndim != 2:
            raise ValueError(
                f"The loss {self.name!r} is of one label an image, and these logits are {tuple(logits.shape)}: use "
                "loss='pixel_ce' for a segmentation model."
            )
        if self.given and logits.shape[1] != 1:
            raise ValueError(
                f"The loss {self.name!r} is a detection model's own, which PixelDetector(model, pixel_space, labels) "
                f"answers with, (N, 1); these logits are {tuple(logits.shape)}: use loss='ce' for a classifier."
            )
        self.check_num_classes(logits.shape[1])

    def check_num_classes(self, num_classes: int) -> None:
        """Raise a ValueError if the loss is undefined for so few classes."""
        if num_classes < self.min_classes:
            raise ValueError(
                f"The loss {self.name!r} compares the {self.min_classes} largest logits, but the model has "
                f"{num_classes} classes. Use loss='ce'."
            )


LOSSES: dict[str, AttackLoss] = {
    loss.name: loss
    for loss in (
        AttackLoss("ce", log_cross_entropy, value=torch.exp),
        AttackLoss("dlr", dlr, min_classes=3),
        AttackLoss("dlr_targeted", dlr_targeted, targeted=True, min_classes=3),
        AttackLoss("kl", kl_from_clean, needs_reference=True),
        AttackLoss("features", features_from_reference, needs_reference=True, of_features=True),
        *(
            AttackLoss(name, objective, torch.exp, dense=True, by_progress=name == "segpgd", compared=compared)
            for name, objective, compared in (
                ("pixel_ce", dense_losses.pixel_ce, None),
                ("segpgd", dense_losses.segpgd, dense_losses.pixel_ce),
                ("masked_ce", dense_losses.masked_ce, dense_losses.pixel_ce),
                ("masked_ce_balanced", dense_losses.masked_ce_balanced, dense_losses.pixel_ce),
                ("js", dense_losses.js, dense_losses.pixel_ce),
            )
        ),
        AttackLoss("masked_spherical", dense_losses.masked_spherical, dense=True),
        AttackLoss("pixel_kl", dense_losses.pixel_kl, needs_reference=True, dense=True),
        AttackLoss("set_loss", own_loss, min_classes=1, given=True),
    )
}

# For searches that ask how far away the boundary is; attacks at a fixed budget climb one of `LOSSES`.
MARGIN = AttackLoss("margin", margin)


def get_loss(name: str) -> AttackLoss:
    """Look a loss up by name.

    Raises:
        ValueError: unknown name; the message lists the valid ones.
    """
    if name not in LOSSES:
        raise ValueError(f"Unknown attack loss {name!r}. Valid losses: {', '.join(LOSSES)}.")
    return LOSSES[name]


def measuring_loss(name: str) -> str:
    """What stands in for a training attack's loss where errors are looked for: cross-entropy for one of no label."""
    loss = get_loss(name)
    return name if not loss.needs_reference else "pixel_ce" if loss.dense else "ce"


def check_measures(name: str) -> None:
    """Raise a ValueError for a loss that an evaluation cannot attack by."""
    if measuring_loss(name) != name:
        raise ValueError(
            f"The loss {name!r} is for attacks in training: it moves answers, right or wrong, and looks for no errors. "
            f"Evaluate with loss={measuring_loss(name)!r}."
        )


def check_of_images(name: str) -> None:
    """Raise a ValueError for a loss of labels of another kind, where there is one an image."""
    if get_loss(name).given:
        raise ValueError(
            f"The loss {name!r} is a detection model's own, and this is a classifier: use loss='ce', or a model of "
            "AutoModelForObjectDetection."
        )
    if get_loss(name).dense:
        raise ValueError(
            f"The loss {name!r} is of one label a pixel, and a classifier has one an image: use loss='ce', or a model "
            "of AutoModelForSemanticSegmentation."
        )
