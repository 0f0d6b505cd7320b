"""Which modules of its own a method trains beside the model, and what these make of the objective."""

import logging
from typing import Any

from torch import nn

from hf_robust_ft.training.objectives.passes import Objective
from hf_robust_ft.training.objectives.twins import add_twins, twins
from hf_robust_ft.training.tuning.batch_norm import AS_TRAINER, FROZEN_FROM_ATTACK, batch_norms, is_untouched

logger = logging.getLogger(__name__)


def extended(model: nn.Module, args: Any) -> nn.Module:
    """The model with the hidden modules that `args` ask for, changed in place.

    Raises:
        ValueError: they need layers that the model does not have, or cannot go with how it runs.
    """
    if args.twins_lambda is None:
        return model
    _refuse_recomputation(model, "twins_lambda")
    model = add_twins(model, trains=args.twins_lambda > 0)
    untouched = any(map(is_untouched, batch_norms(model)))
    logger.warning(
        "TWINS keeps the statistics of the pretrained weights, which helps where these are adversarially robust%s. "
        "Compare with twins_lambda left out.", "; some of these statistics no data have moved" if untouched else "",
    )  # fmt: skip
    return model


def with_structure(objective: Objective, args: Any, model: nn.Module) -> Objective:
    """The objective as the hidden modules of an extended model have it.

    Args:
        model: the unwrapped model.
    """
    return objective if args.twins_lambda is None else twins(objective, args.twins_lambda, model)


def check_structure(trainer: Any) -> None:
    """Raise for what shows in a built trainer only: a loss function of the user's own, or sharded weights.

    Raises:
        ValueError: naming it.
    """
    name = None if trainer.args.twins_lambda is None else "twins_lambda"
    if name is None:
        return
    if trainer.args.batch_norm == FROZEN_FROM_ATTACK and trainer.current_eps > 0:
        raise ValueError(
            f"{name} with batch_norm={FROZEN_FROM_ATTACK!r} needs a schedule that begins with eps 0: with "
            f"eps_schedule={trainer.args.eps_schedule!r} no statistics adapt, and both branches are one. Set "
            f"batch_norm={AS_TRAINER!r}, or eps_schedule='hinge'."
        )
    if trainer.compute_loss_func is not None:
        raise ValueError(
            f"{name} and compute_loss_func exclude each other: a function that divides by the number of items in the "
            "batch would count each half as the whole. Leave it out, or use objective=trades."
        )
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ValueError(f"{name} is not verified with sharded weights: train with DDP, or in one process.")


def _refuse_recomputation(model: nn.Module, name: str) -> None:
    """Activation checkpointing that the user has switched on in the model itself, as transformers and timm do."""
    switches = ("gradient_checkpointing", "grad_checkpointing")
    if any(getattr(module, each, False) is True for module in model.modules() for each in switches):
        raise ValueError(
            f"{name} and activation checkpointing exclude each other: the backward pass would compute the activations "
            f"again by another branch. Call {type(model).__name__}.gradient_checkpointing_disable()."
        )
