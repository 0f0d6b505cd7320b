"""How a classifier is called with images, and where in its answer the logits stand."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

_POSITIONAL = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.VAR_POSITIONAL,
)


def needs_keyword(model: nn.Module) -> bool:
    """Whether images must be given as `pixel_values=`, as Trainer gives them, rather than as the first argument.

    Of a wrapper that hands on whatever it is given (PEFT, `torch.compile`, DDP), the module inside decides.
    """
    try:
        parameters = inspect.signature(model.forward).parameters
    except (TypeError, ValueError):  # TorchScript
        return False
    kinds = [parameter.kind for parameter in parameters.values()]
    if set(kinds) == {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
        inner = list(model.children())
        return len(inner) == 1 and needs_keyword(inner[0])
    is_later = "pixel_values" in list(parameters)[1:]
    return is_later or not kinds or kinds[0] not in _POSITIONAL


def extract_logits(outputs: Any) -> Tensor:
    """The logits (N, K) of a model's output.

    They are the output itself; what it calls `logits` (a dict, a `ModelOutput`, a dataclass, a named tuple), wherever
    that stands; or the one tensor of two dimensions in a tuple, such as (loss, logits) or (feature map, logits).

    Raises:
        ValueError: there are none, they are not of shape (N, K), or which of a tuple's tensors they are is unclear.
    """
    logits = _found_in(outputs, dimensions=2)
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"The model returned no logits but {_kind(outputs)}. Use a classification model, "
            "e.g. AutoModelForImageClassification.from_pretrained(...), or one that returns {'logits': ...}."
        )
    if logits.ndim != 2:
        raise ValueError(f"Logits must have shape (N, K), got {tuple(logits.shape)}: is this an image classifier?")
    return logits


def extract_dense_logits(outputs: Any) -> Tensor:
    """The logits (N, K, h, w) of a segmentation model's output, which stand where those of a classifier do.

    Raises:
        ValueError: there are none, they are not of that shape, or which of a tuple's tensors they are is unclear.
    """
    logits = _found_in(outputs, dimensions=4)
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"The model returned no logits of each pixel but {_kind(outputs)}. Use a semantic segmentation model, e.g. "
            "AutoModelForSemanticSegmentation.from_pretrained(...); one that answers with masks of queries "
            "(Mask2Former, OneFormer, MaskFormer) has no cross-entropy a pixel to attack."
        )
    if logits.ndim != 4:
        raise ValueError(
            f"Logits must have shape (N, K, h, w), got {tuple(logits.shape)}: is this a semantic segmentation model?"
        )
    return logits


def _found_in(outputs: Any, dimensions: int) -> Any:
    """What an output calls `logits`, or the one tensor of so many dimensions in a tuple; else the output itself."""
    if isinstance(outputs, Mapping):  # a ModelOutput is one
        return outputs.get("logits")
    if hasattr(outputs, "logits"):
        return outputs.logits
    return _of_tuple(outputs, dimensions) if isinstance(outputs, (tuple, list)) else outputs


def _of_tuple(outputs: tuple | list, dimensions: int) -> Tensor | None:
    tensors = [entry for entry in outputs if isinstance(entry, Tensor)]
    candidates = [tensor for tensor in tensors if tensor.ndim == dimensions]
    if len(candidates) > 1:
        shapes = ", ".join(str(tuple(each.shape)) for each in candidates)
        raise ValueError(
            f"The model returned a tuple with tensors of shape {shapes}: which of them are the logits is unclear. Let "
            "it return {'logits': ..., ...} or the logits alone."
        )
    return candidates[0] if candidates else max(tensors, key=lambda tensor: tensor.ndim, default=None)


def _kind(outputs: Any) -> str:
    return str(list(outputs)) if isinstance(outputs, Mapping) else type(outputs).__name__
