"""Which modules of its own a method trains beside the model, and what these make of the objective."""

import logging
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from hf_robust_ft.training.objectives.autolora import add_branch, autolora
from hf_robust_ft.training.objectives.autolora_epochs import AutoLoraEpochs
from hf_robust_ft.training.objectives.autolora_rate import AutoLoraRecord
from hf_robust_ft.training.objectives.awp import perturbed
from hf_robust_ft.training.objectives.hidden import remove_hidden
from hf_robust_ft.training.objectives.passes import Objective
from hf_robust_ft.training.objectives.teacher import add_teacher, release_head, teacher_of
from hf_robust_ft.training.objectives.twins import add_twins, remove_twins, twins
from hf_robust_ft.training.tuning.batch_norm import AS_TRAINER, FROZEN_FROM_ATTACK, batch_norms, is_untouched

logger = logging.getLogger(__name__)


def extended(model: nn.Module, args: Any) -> nn.Module:
    """The model with the hidden modules that `args` ask for and no others, changed in place.

    Those that an earlier Trainer left in the model go first: a training begins as from the saved model.

    Raises:
        ValueError: they need layers that the model does not have, or cannot go with how it runs.
    """
    remove_twins(model)
    release_head(model)
    remove_hidden(model)
    if args.has_teacher:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(args.mixed_precision)
        return add_teacher(model, dtype, of_features=args.asks_features)
    if args.structure is None:
        return model
    _refuse_recomputation(model, args.structure)
    if args.autolora:
        return add_branch(model, args.autolora_rank, args.seed)
    model = add_twins(model, trains=args.twins_lambda > 0)
    untouched = any(map(is_untouched, batch_norms(model)))
    logger.warning(
        "TWINS keeps the statistics of the pretrained weights, which helps where these are adversarially robust%s. "
        "Compare with twins_lambda left out.", "; some of these statistics no data have moved" if untouched else "",
    )  # fmt: skip
    return model


def step_objective(trainer: Any) -> Objective:
    """What a step of an `AdversarialTrainer` minimises, at the weights as they are or, under AWP, as they are worst."""
    objective, perturbation = _with_hidden(trainer), trainer.weight_perturbation
    if perturbation is None:
        return objective
    return perturbed(objective, perturbation, trainer.model, trainer.adversary.in_use(trainer.model))


def _with_hidden(trainer: Any) -> Objective:
    """The arguments' objective, as the model's hidden modules have it."""
    args, model, objective = trainer.args, trainer.model, trainer.args.build_objective()
    if args.has_teacher:
        return partial(objective, teacher=teacher_of(model))
    if args.autolora:
        return autolora(objective, trainer.callback_of(AutoLoraRecord).accuracy, args.autolora_scale, model)
    return objective if args.twins_lambda is None else twins(objective, args.twins_lambda, model)


def structure_callbacks(trainer: Any) -> list[TrainerCallback]:
    """What watches over a method's own modules in training."""
    return [AutoLoraRecord(), AutoLoraEpochs(trainer)] if trainer.args.autolora else []


def check_structure(trainer: Any) -> None:
    """Raise for what shows in a built trainer only: its data, a loss function of the user's own, sharded weights.

    Raises:
        ValueError: naming it.
    """
    args, name = trainer.args, trainer.args.structure
    if args.has_teacher:
        _check_taught(trainer)
    if args.awp_gamma > 0 and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise ValueError("awp_gamma is not verified with sharded weights: train with DDP, or in one process.")
    if name is None:
        return
    if args.threat_model.eps == 0:
        logger.warning("%s at eps 0: no image is attacked, so the method trains for nothing that is measured.", name)
    if trainer.compute_loss_func is not None:
        raise ValueError(
            f"{name} and compute_loss_func exclude each other: a function that divides by the number of items in the "
            "batch would count a part of the loss as the whole. Leave it out, or use objective=trades."
        )
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ValueError(f"{name} is not verified with sharded weights: train with DDP, or in one process.")
    if args.twins_lambda is not None and args.batch_norm == FROZEN_FROM_ATTACK and trainer.current_eps > 0:
        raise ValueError(
            f"{name} with batch_norm={FROZEN_FROM_ATTACK!r} needs a schedule that begins with eps 0: with "
            f"eps_schedule={args.eps_schedule!r} no statistics adapt, and both branches are one. Set "
            f"batch_norm={AS_TRAINER!r}, or eps_schedule='hinge'."
        )
    if args.autolora and trainer.train_dataset is not None and not hasattr(trainer.train_dataset, "__len__"):
        raise ValueError(
            "autolora measures its branch on all training images before each epoch, and this train_dataset has no "
            "length (a stream?). Load it as a whole, or leave autolora out."
        )


def _check_taught(trainer: Any) -> None:
    """As `check_structure`, for an objective that asks a frozen teacher."""
    name = f"objective={trainer.args.objective!r}"
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ValueError(f"{name} is not verified with sharded weights: train with DDP, or in one process.")
    if not trainer.args.asks_features:
        return
    if trainer.compute_loss_func is not None:
        raise ValueError(f"{name} has no use for compute_loss_func: no label has a say in it. Leave it out.")
    if trainer.args.n_gpu > 1:
        raise ValueError(
            f"{name} reads features inside the model, which DataParallel copies for each of {trainer.args.n_gpu} "
            "devices: start it by torchrun, one process a device, or show it one device only."
        )


def _refuse_recomputation(model: nn.Module, name: str) -> None:
    """Activation checkpointing that the user has switched on in the model itself, as transformers and timm do."""
    switches = ("gradient_checkpointing", "grad_checkpointing")
    if any(getattr(module, each, False) is True for module in model.modules() for each in switches):
        raise ValueError(
            f"{name} and activation checkpointing exclude each other: the backward pass would compute the activations "
            f"again by another branch. Call {type(model).__name__}.gradient_checkpointing_disable()."
        )
