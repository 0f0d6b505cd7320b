"""mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899): batches of images that are of two classes each."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from hf_robust_ft.attacks.losses import get_loss
from hf_robust_ft.attacks.random_state import key_seed
from hf_robust_ft.provenance.affects import DeclaredArguments
from hf_robust_ft.provenance.choices import is_number, refuse_together
from hf_robust_ft.training.objectives.passes import logits_of

# Of the losses of an attack, and of the objectives: those that need an image to be of one class.
OF_ONE_CLASS = ("dlr", "dlr_targeted")
OBJECTIVES_OF_ONE_CLASS = ("mart", "fare")


@dataclass
class MixingArguments(DeclaredArguments):
    """Whether, and how much, the images of a training batch are mixed. Off by default."""

    mixup_alpha: float = field(
        default=0.0,
        metadata={
            "help": "mixup: training images are sums of two, with weights drawn from Beta(alpha, alpha); 0: none.",
            "affects": "weights",
        },
    )
    cutmix_alpha: float = field(
        default=0.0,
        metadata={
            "help": "CutMix: a box of another image, its area drawn as mixup's weight; with both, one of them a batch.",
            "affects": "weights",
        },
    )

    def check_mixing(self) -> None:
        """Raise for a value out of range, and for what mixed images cannot go with; once all arguments are settled.

        Raises:
            ValueError: naming the arguments, and what to do.
        """
        for name in ("mixup_alpha", "cutmix_alpha"):
            value = getattr(self, name)
            if not is_number(value) or not 0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and not negative, e.g. 0.2, 0 for none; got {value!r}.")
        if not self.mixes:
            return
        asked = ", ".join(f"{name}={getattr(self, name):g}" for name in ("mixup_alpha", "cutmix_alpha"))
        needs_one = "it needs images of one class"
        modules = "the loss of mixed images is a sum over the batch, and it would count a part of that as the whole"
        excluded = (
            ("twins_lambda", self.twins_lambda is not None, modules),
            ("autolora", self.autolora, modules),
            ("objective", self.objective in OBJECTIVES_OF_ONE_CLASS, f"{needs_one}, or none"),
            ("attack_loss", self.attack_loss in OF_ONE_CLASS or get_loss(self.attack_loss).of_features, needs_one),
            ("eps_schedule", self.needs_sample_ids, "a mixed image is none of those that it remembers"),
        )
        refuse_together(asked, self, excluded)

    @property
    def mixes(self) -> bool:
        """Whether training images are mixed."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0

    def mix(self, inputs: dict[str, Any], num_labels: int, key: tuple[int, ...]) -> dict[str, Any]:
        """The batch with each image mixed with the one before it; `labels` become shares of classes (N, K), float32.

        Args:
            inputs: `pixel_values` (N, C, H, W) and `labels` (N,), class indices.
            num_labels: K.
            key: whole numbers that the draw depends on, and on nothing else that draws random numbers.
        """
        wanted = ((v2.MixUp, self.mixup_alpha), (v2.CutMix, self.cutmix_alpha))
        kinds = [kind(alpha=alpha, num_classes=num_labels) for kind, alpha in wanted if alpha > 0]
        labels = inputs["labels"]
        # Not `one_hot`, which reads the labels' range from the device.
        shares = (labels[:, None] == torch.arange(num_labels, device=labels.device)).float()
        with torch.random.fork_rng(devices=[]):  # they draw on the CPU, whatever the images' device
            torch.default_generator.manual_seed(key_seed(*key))
            pixel_values, shares = v2.RandomChoice(kinds)(inputs["pixel_values"], shares)
        return {**inputs, "pixel_values": pixel_values, "labels": shares}


class MixedCrossEntropy:
    """Trainer's `compute_loss_func` for shares of classes, which transformers' models would take for several labels.

    Args:
        label_smoothing: Trainer's `label_smoothing_factor`.
    """

    def __init__(self, label_smoothing: float):
        self.label_smoothing = label_smoothing

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """The mean over the images, or their sum over the number of all those that one optimizer step sees.

        Args:
            outputs: the model's, with logits (N, K).
            labels: (N, K) shares, or in evaluation (N,) classes.
        """
        logits = logits_of(outputs).float()
        reduction = "mean" if num_items_in_batch is None else "sum"
        loss = F.cross_entropy(logits, labels, reduction=reduction, label_smoothing=self.label_smoothing)
        return loss if num_items_in_batch is None else loss / num_items_in_batch


def loss_in_use(args: MixingArguments, compute_loss_func: Callable | None) -> Callable | None:
    """Trainer's `compute_loss_func`: the one given, or that of mixed images.

    Raises:
        ValueError: there would be two.
    """
    if not args.mixes:
        return compute_loss_func
    if compute_loss_func is not None:
        raise ValueError(
            "compute_loss_func is given classes (N,), and mixed images have shares of classes: leave it out, or "
            "mixup_alpha and cutmix_alpha."
        )
    return MixedCrossEntropy(args.label_smoothing_factor)
