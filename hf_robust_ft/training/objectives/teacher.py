"""A frozen teacher: the network that training starts from, kept beside the one that trains and asked in each step.

It is hidden (`objectives.hidden`): no part of `state_dict()`, and never published. Each checkpoint keeps it whole in
`hidden_weights.safetensors`, so a run that goes on has the teacher it began with, whatever model it is given.
"""

import copy
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from hf_robust_ft.training.objectives.head_input import HeadInput
from hf_robust_ft.training.objectives.hidden import hide
from hf_robust_ft.training.objectives.passes import logits_of
from hf_robust_ft.training.tuning.parts import head_parameters

logger = logging.getLogger(__name__)

SIGNIFICANT = 0.05  # how seldom chance may be as often right as a teacher that knows the classes
TEACHER = "frozen_teacher"  # its name in the model
HELD_TO_NOISE = "training is held to noise. Load it with head='zero_shot', or set probe_epochs"
HEAD_STAYS = "fare leaves it so, at chance. Load the model with head='zero_shot', or a checkpoint that knows them"


class Teacher(nn.Module):
    """A copy of a model that stands still: in evaluation mode whatever the model's, without gradients.

    Args:
        model: copied as it is.
        dtype: what autocast makes of the model's forwards, and so of the teacher's; None without one.
        of_features: whether its features are asked for, too, and the model's; the model's head then stands still.

    Raises:
        ValueError: with `of_features`, a head that cannot be told from the rest.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None, of_features: bool = False):
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.dtype = dtype
        self.own: HeadInput | None = None
        self.students: HeadInput | None = None
        self.stilled: list[str] = []  # of the model's head
        self._known: tuple[Tensor, Tensor] | None = None  # images, and their features
        if of_features:
            self.own, self.students = HeadInput(self.model), HeadInput(model)
            head = head_parameters(model)
            self.stilled = [name for name, each in model.named_parameters() if name in head and each.requires_grad]
            require_gradient(model, self.stilled, False)
        self.eval()

    def train(self, mode: bool = True) -> "Teacher":
        return super().train(False)

    @torch.no_grad()
    def forward(self, *args: Any, **inputs: Any) -> Any:
        kind = next(self.model.parameters()).device.type
        with nullcontext() if self.dtype is None else torch.autocast(kind, self.dtype):
            return self.model(*args, **inputs)

    def features(self, inputs: Mapping[str, Any]) -> Tensor:
        """What its head is given for a batch, (N, D) in float32; found once where attack and loss ask for the same.

        Args:
            inputs: `{"pixel_values": (N, C, H, W), ...}`, without labels.
        """
        images = inputs["pixel_values"]
        if self._known is None or self._known[0] is not images:
            self(**inputs)
            self._known = images, self.own.take()
        return self._known[1]

    def start_from(self, model: nn.Module) -> None:
        """Be what the model is now, of which this is a copy."""
        self.model.load_state_dict(model.state_dict())
        self._known = None


class FeaturesOf:
    """A function from pixels to logits that also has the features they were made of, as attacks on features need.

    Attributes:
        reference: (N, D), the teacher's of the clean images.
    """

    def __init__(self, logits_fn: Callable[[Tensor], Tensor], students: HeadInput, reference: Tensor):
        self._logits_fn, self._students, self.reference = logits_fn, students, reference

    def __call__(self, pixels: Tensor) -> Tensor:
        return self._logits_fn(pixels)

    @property
    def features(self) -> Tensor:
        """(N, D) of the last call."""
        return self._students.take()


def with_features(
    logits_fn: Callable[[Tensor], Tensor], model: nn.Module, inputs: Mapping[str, Any]
) -> Callable[[Tensor], Tensor]:
    """What an attack on the features of a model goes through; the function itself where there is no teacher of them.

    Args:
        inputs: the clean batch, without labels.
    """
    teacher = teacher_of(model)
    if teacher is None or teacher.students is None:
        return logits_fn
    return FeaturesOf(logits_fn, teacher.students, teacher.features(inputs))


def add_teacher(model: nn.Module, dtype: torch.dtype | None, of_features: bool) -> nn.Module:
    """Give a model its teacher, in place; `state_dict()` and logits stay what they are. Raises as `Teacher`."""
    model.add_module(TEACHER, Teacher(model, dtype, of_features))
    hide(model, TEACHER)
    return model


def teacher_of(model: nn.Module) -> Teacher | None:
    """A model's teacher, if it has one."""
    return getattr(model, TEACHER, None)


def warn_of_ignorance(model: nn.Module, inputs: Mapping[str, Any]) -> None:
    """Warn where the teacher's answers to a first batch are no better than chance: there is nothing to hold on to.

    Args:
        model: which has a teacher.
        inputs: `{"pixel_values": (N, C, H, W), "labels": (N,), ...}`.
    """
    labels, teacher = inputs["labels"], teacher_of(model)
    logits = logits_of(teacher(**{name: each for name, each in inputs.items() if name != "labels"}))
    if teacher.own is not None:
        teacher.own.take()  # nobody else will
    right, num_labels = int((logits.argmax(1) == labels).sum()), logits.shape[1]
    if binomtest(right, len(labels), 1 / num_labels, alternative="greater").pvalue > SIGNIFICANT:
        of_answers = teacher.own is None
        logger.warning(
            "The frozen network that %s holds on to is right for %d of the first %d images, no more than chance with "
            "%d classes: its head does not know them; %s.", "pmg_aft" if of_answers else "fare", right, len(labels),
            num_labels, HELD_TO_NOISE if of_answers else HEAD_STAYS,
        )  # fmt: skip


def release_head(model: nn.Module) -> None:
    """Let the head train again that an earlier teacher of features made stand still; the teacher itself is hidden."""
    teacher = teacher_of(model)
    if teacher is not None and teacher.students is not None:
        require_gradient(model, teacher.stilled, True)
        teacher.students.forget()


def require_gradient(model: nn.Module, names: Iterable[str], wanted: bool) -> None:
    """Train parameters of a model, or leave them as they are."""
    for name in names:
        model.get_parameter(name).requires_grad_(wanted)
