"""A detection model on pixels in [0, 1]: its own loss, image by image."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_robust_ft.attacks.pixels import PixelModel, PixelSpace

PIXEL_MASK = "pixel_mask"  # (N, H, W), 0 where an image is padded to the size of its batch
_COMPANION = 0.5  # any constant that is a valid box

NO_LOSS = (
    "{model} has no loss of its own that is computed from boxes, so there is nothing to attack. Use a DETR-like model "
    "of AutoModelForObjectDetection: YOLOS, DETR, Conditional DETR, Deformable DETR, RT-DETR, ..."
)


class PixelDetector(PixelModel):
    """A detector on pixels in [0, 1] that answers with its own loss on given boxes, one an image.

    DETR-like models match their predictions to the labelled boxes and take the loss of the pairs. Here it is of each
    image as of a batch of one, whatever its batch, so that an attack keeps the worst point of each. Matching waits for
    the device at every forward.

    Args:
        model: a transformers or PEFT model of `AutoModelForObjectDetection`.
        pixel_space: the normalisation the model expects.
        labels: N dicts of `class_labels` (n,) and `boxes` (n, 4), centre x, centre y, width and height in [0, 1].
        model_inputs: further keyword arguments for every call; of a `pixel_mask` (N, H, W) padding stays as it is.

    Shape:
        pixels (N, C, H, W) in [0, 1] -> float32 losses (N, 1), as the attack loss "set_loss" takes them.
    """

    def __init__(
        self,
        model: nn.Module,
        pixel_space: PixelSpace | None = None,
        labels: Sequence[Mapping[str, Tensor]] | None = None,
        model_inputs: dict[str, Any] | None = None,
    ):
        super().__init__(model, pixel_space, model_inputs)
        self.labels = labels

    def forward(self, pixels: Tensor) -> Tensor:
        if self.labels is None:
            raise ValueError("A PixelDetector's answer is its loss: give the labels of the images, labels=[...].")
        with own_losses(self.model) as found:
            self._called(pixels, {**self.model_inputs, "labels": list(self.labels)})
        if not found:
            raise ValueError(NO_LOSS.format(model=type(self.model).__name__))
        return found[0][:, None].float()

    def detect(self, pixels: Tensor) -> Any:
        """The model's own outputs for pixels (N, C, H, W): `logits` (N, Q, K) and `pred_boxes` (N, Q, 4)."""
        return self._called(pixels, self.model_inputs)

    def _called(self, pixels: Tensor, model_inputs: dict[str, Any]) -> Any:
        called = PixelModel(self.model, self.pixel_space, model_inputs)
        mask = model_inputs.get(PIXEL_MASK)
        if mask is not None:
            # Padding is 0 after normalisation, and no attacker's.
            pixels = torch.where(mask[:, None].bool(), pixels, self.pixel_space.to_pixels(torch.zeros_like(pixels)))
        return called.outputs(pixels)


@contextmanager
def own_losses(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collects, of each forward with labels, what the model's own loss is of each image alone, (N,).

    The model's `loss_function` is as before in the end.

    Raises:
        ValueError: a model without one.
    """
    owner = next((module for module in model.modules() if hasattr(type(module), "loss_function")), None)
    if owner is None:
        raise ValueError(NO_LOSS.format(model=type(model).__name__))
    own, of_user, found = owner.loss_function, vars(owner).get("_loss_function"), []

    def of_each(logits: Tensor, labels: list, *args: Any, **kwargs: Any) -> tuple[Tensor, dict, None]:
        found.append(_image_by_image(own, logits, labels, args, kwargs))
        return found[-1], {}, None

    owner.loss_function = of_each
    try:
        yield found
    finally:
        if of_user is None:
            del owner._loss_function
        else:
            owner.loss_function = of_user


def _image_by_image(loss: Callable, logits: Tensor, labels: list, args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """The losses (N,) of a loss function of transformers', which is given outputs of all layers and images."""
    layers_first = _layers_first([*args, *kwargs.values()], logits)
    losses = []
    for index, of_image in enumerate(labels):
        # transformers' matchers fail on a batch without a box: such an image is given company, whose share in the loss
        # is the same wherever the attack goes.
        is_empty = len(of_image["class_labels"]) == 0
        own = [of_image, _company(of_image)] if is_empty else [of_image]

        def taken(value: Any, index: int = index, is_empty: bool = is_empty) -> Any:
            return _of_image(value, index, layers_first, is_empty)

        named = {name: taken(value) for name, value in kwargs.items()}
        losses.append(loss(taken(logits), own, *map(taken, args), **named)[0])
    return torch.stack(losses)


def _layers_first(values: list, logits: Tensor) -> bool:
    """Whether outputs of all layers are (L, N, Q, ...), as DETR's, rather than (N, L, Q, ...), as RT-DETR's."""
    of_layers = next((value for value in values if isinstance(value, Tensor) and value.ndim == 4), None)
    if of_layers is None or of_layers.shape[0] != len(logits):
        return True
    if of_layers.shape[1] != len(logits):
        return False
    return not torch.equal(of_layers[:, -1], logits)  # as many layers as images


def _of_image(value: Any, index: int, layers_first: bool, with_company: bool) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_of_image(each, index, layers_first, with_company) for each in value)
    if not isinstance(value, Tensor) or value.ndim < 3:
        return value
    axis = 1 if layers_first and value.ndim == 4 else 0
    own = value.narrow(axis, index, 1)
    return torch.cat([own, torch.full_like(own, _COMPANION)], axis) if with_company else own


def _company(labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The labels of an image with one box in its middle."""
    classes, boxes = labels["class_labels"], labels["boxes"]
    return {"class_labels": classes.new_zeros(1), "boxes": boxes.new_full((1, 4), _COMPANION)}
