"""One forward before the work begins: how many classes a model tells apart, and whether an attack can find its way."""

import inspect
import sys
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from hf_robust_ft.attacks.pixels import PixelClassifier

NO_GRADIENT = (
    "The model's logits have no gradient with respect to its input, so no attack can find its way: look for detach(), "
    "numpy, no_grad, inference_mode or int8 layers in its forward, and call this outside of torch.inference_mode(). A "
    "backbone that is not to be trained is frozen by requires_grad_(False), or freeze='backbone', and a model is "
    "quantised after training."
)

NO_LABELS = (
    "An attack calls the model with images and without labels, which failed ({error}). Let its forward take "
    "labels=None and compute the loss only where they are given."
)


def count_classes(classifier: PixelClassifier, pixels: Tensor, attacked: bool, least: int = 2) -> int:
    """K, from a forward on pixels (N, C, H, W); call it inside `attack_mode`, as an attack.

    Args:
        least: of K; 1 of a model that answers with its own loss.

    Raises:
        ValueError: a single class, a model that cannot do without labels, or, where it is to be attacked, logits
            without a gradient.
    """
    if attacked and torch.is_inference_mode_enabled():
        raise ValueError(NO_GRADIENT)
    pixels = pixels.detach().clone()
    try:
        with uncompiled():
            logits, gradient = (
                _with_gradient(classifier, pixels, least) if attacked else (_without(classifier, pixels), None)
            )
    except (TypeError, AttributeError) as error:
        if _is_about_labels(classifier.model, error):
            raise ValueError(NO_LABELS.format(error=f"{type(error).__name__}: {error}")) from error
        raise
    if logits.shape[1] < least:
        raise ValueError(
            "The model has 1 class: there is nothing to confuse it with, so no attack can fool it. Load it with "
            "num_labels=<classes>."
        )
    if attacked and gradient is None:
        raise ValueError(NO_GRADIENT)
    return logits.shape[1]


def _is_about_labels(model: nn.Module, error: Exception) -> bool:
    """Whether forward asks for labels, or fails on None, which is what it is given for them."""
    takes_labels = "labels" in inspect.signature(model.forward).parameters
    return takes_labels and ("labels" in str(error) or "None" in str(error))


def _with_gradient(classifier: PixelClassifier, pixels: Tensor, least: int) -> tuple[Tensor, Tensor | None]:
    """The logits, and the gradient of their sum at the pixels, None where there is none."""
    pixels.requires_grad_()
    try:
        with torch.enable_grad():
            logits = classifier(pixels)
            if logits.shape[1] < least or not logits.requires_grad:
                return logits, None
            return logits, torch.autograd.grad(logits.float().sum(), pixels, allow_unused=True)[0]
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        _without(classifier, pixels.detach())  # a fault of its own is told as it is
        raise ValueError(f"{NO_GRADIENT} (torch says: {error})") from error


def _without(classifier: PixelClassifier, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return classifier(pixels)


def stated_classes(model: nn.Module) -> int | None:
    """`config.num_labels`, if a weight of the model has that size; on a module of one's own it may be another's."""
    count = getattr(getattr(model, "config", None), "num_labels", None)
    sizes = {size for weight in model.parameters() for size in (weight.shape[:1] + weight.shape[-1:])}
    return count if count in sizes else None


def uncompiled() -> AbstractContextManager:
    """Nothing is compiled within: a graph for one or two images would cost minutes, and all later ones their speed."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
