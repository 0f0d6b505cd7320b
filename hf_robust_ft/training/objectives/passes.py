"""What an objective is a function of: Trainer's own loss and logits on images of a batch, clean or adversarial.

So label smoothing, `compute_loss_func`, accumulation, autocast, PEFT and DDP stay Trainer's, whatever is minimised.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.parallel import DataParallel

from hf_robust_ft.attacks.model_calls import extract_logits


class Pass(NamedTuple):
    """The model on one set of images.

    Attributes:
        loss: Trainer's own, over all of them.
        outputs: the model's.
        read: their logits.
    """

    loss: Tensor
    outputs: Any
    read: Callable[[Any], Tensor] | None = None

    @property
    def logits(self) -> Tensor:
        """(N, K) in float32, whatever autocast does; of one label a pixel (N, K, H, W), of the masks' size.

        Raises:
            ValueError: training mode has no one set of them (auxiliary heads).
        """
        try:
            return (self.read or logits_of)(self.outputs).float()
        except ValueError as error:
            raise ValueError(f"In training mode: {error} Or set objective='at', which needs no logits.") from None


class Loss(NamedTuple):
    """What an objective makes of a batch.

    Attributes:
        total: what is minimised.
        outputs: the model's on the adversarial images; on the clean ones without an attack. Where they are fewer than
            the batch's, they are of its last images.
        parts: by the name they are logged under, scalars; the same names for every batch, attacked or not.
    """

    total: Tensor
    outputs: Any
    parts: Mapping[str, Tensor] = {}


# (passes, clean, adversarial) -> Loss, of pixel_values (N, C, H, W); adversarial is None where eps is 0. With None it
# is Trainer's own loss on the clean images, to the bit. A weight of 0 skips the pass that it would need.
Objective = Callable[["Passes", Tensor, Tensor | None], Loss]


class Passes:
    """Trainer's loss and logits on images of one batch, as often as an objective asks.

    Only the first pass goes through the model as Trainer wrapped it: one forward arms DDP's reducer and broadcasts
    buffers, and gradients of later ones arrive by the same hooks. DDP wants every parameter that trains used by every
    process in each step, so what skips a pass must not depend on the batch.

    Args:
        compute_loss: `(model, inputs) -> (loss, outputs)`, Trainer's own.
        models: what each pass goes through, the wrapped model first.
        inputs: the batch, `{"pixel_values": (N, C, H, W), "labels": (N,), ...}`.
        per_item: what an image weighs in a loss that is normalised by the number of items; None for one that is a mean
            over its images, which Trainer divides by the batches it accumulates.
        task: what reads logits and takes means, a `training.tasks.Task`; None for one label an image.
    """

    def __init__(
        self,
        compute_loss: Callable[[nn.Module, dict[str, Any]], tuple[Tensor, Any]],
        models: Iterable[nn.Module],
        inputs: Mapping[str, Any],
        per_item: Tensor | float | None = None,
        task: Any = None,
    ):
        self._compute_loss, self._models = compute_loss, iter(models)
        self._inputs, self._per_item, self._task = inputs, per_item, task

    @classmethod
    def of(
        cls, trainer: Any, compute_loss: Callable, model: nn.Module, inputs: Mapping[str, Any], num_items: Any
    ) -> "Passes":
        """As an `AdversarialTrainer` makes them, by its base's `compute_loss`, of what it is given."""
        again = model if isinstance(model, DataParallel) else trainer.adversary.in_use(trainer.model)
        per_item = None
        if trainer.compute_loss_func is not None and num_items is not None:
            per_item = 1 / num_items
            if trainer.args.average_tokens_across_devices:  # then it counts all devices', whose gradients are averaged
                per_item = per_item * max(trainer.accelerator.num_processes, trainer.args.n_gpu)

        def computed(through: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Any]:
            return compute_loss(through, batch, return_outputs=True, num_items_in_batch=num_items)

        return cls(computed, itertools.chain([model], itertools.repeat(again)), inputs, per_item, trainer.task)

    def __call__(self, pixel_values: Tensor) -> Pass:
        """One pass over images (N, C, H, W) that stand for the batch's own, normalised as those are."""
        inputs = {**self._inputs, "pixel_values": pixel_values}  # its own: Trainer may take the labels out
        read = None if self._task is None else partial(self._task.training_logits, labels=self.labels)
        return Pass(*self._compute_loss(next(self._models), inputs), read)

    @property
    def labels(self) -> Tensor:
        """(N,) class indices, or masks of them (N, H, W)."""
        return self._inputs["labels"]

    def mean(self, values: Tensor) -> Tensor:
        """The mean of (N,), one value an image, scaled as Trainer's loss is; of (N, H, W), over labelled pixels."""
        if self._task is None:
            return scaled_mean(values, self._per_item)
        return self._task.mean(values, self.labels, self._per_item)

    def through(self, model: nn.Module) -> "Passes":
        """Passes over the batch through another model than the wrapped one; not the first of a batch."""
        return Passes(self._compute_loss, itertools.repeat(model), self._inputs, self._per_item, self._task)

    def inputs_of(self, pixel_values: Tensor) -> dict[str, Any]:
        """What a model is given for images that stand for the batch's own, without labels."""
        inputs = {name: value for name, value in self._inputs.items() if name != "labels"}
        return {**inputs, "pixel_values": pixel_values}

    def outputs_of(self, model: nn.Module, pixel_values: Tensor) -> Any:
        """Another model's outputs on images that stand for the batch's own; no pass of Trainer's."""
        return model(**self.inputs_of(pixel_values))

    def rows(self, part: slice) -> "Passes":
        """Passes over some of the batch's images; the first of either is the batch's first."""
        size = len(self.labels)
        inputs = {
            name: value[part] if isinstance(value, Tensor) and value.shape[:1] == (size,) else value
            for name, value in self._inputs.items()
        }
        return Passes(self._compute_loss, self._models, inputs, self._per_item, self._task)


def scaled_mean(values: Tensor, per_item: Tensor | float | None) -> Tensor:
    """The mean of values, or with `per_item` their sum times that."""
    return values.mean() if per_item is None else (values * per_item).sum()


def logits_of(outputs: Any) -> Tensor:
    """(N, K) logits of a model in training mode.

    Raises:
        ValueError: there is no one set of them (auxiliary heads).
    """
    if isinstance(outputs, tuple) and outputs and isinstance(outputs[0], Tensor) and outputs[0].ndim == 0:
        outputs = outputs[1:]  # a tuple that begins with the loss
    return extract_logits(outputs)
