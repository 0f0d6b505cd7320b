"""BatchNorm in adversarial training: whose statistics the training step normalises by.

The attack runs in evaluation mode, on running statistics. A step on batch statistics is another network: it never
meets what the attack found, and the network that is saved was not trained against it (arXiv 2010.03316).
"""

import logging
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from hf_robust_ft.provenance.choices import check_choice
from hf_robust_ft.training.objectives.hidden import own_modules
from hf_robust_ft.training.remembered import remembered

logger = logging.getLogger(__name__)

FROZEN, FROZEN_FROM_ATTACK, AS_TRAINER = "frozen", "frozen_from_attack", "trainer"
BATCH_NORM = (FROZEN, FROZEN_FROM_ATTACK, AS_TRAINER)


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """The modules that in training normalise by the batch: BatchNorm of any dimension, synchronised, lazy, timm's.

    Not those that never do: FrozenBatchNorm of torchvision, timm and DETR, GroupNorm, LayerNorm, InstanceNorm; and not
    those of modules that are hidden in the model.
    """
    return [module for _, module in own_modules(model) if isinstance(module, _BatchNorm) or _is_like_one(module)]


def _is_like_one(module: nn.Module) -> bool:
    """timm's EvoNorm-B and InplaceAbn; a FrozenBatchNorm keeps even its weight as a buffer."""
    buffers = module._buffers
    return buffers.get("running_var") is not None and "weight" not in buffers and not isinstance(module, _InstanceNorm)


def has_statistics(module: nn.Module) -> bool:
    """Whether a BatchNorm keeps running statistics; one without them normalises by the batch in evaluation, too."""
    return module._buffers.get("running_var") is not None


def is_untouched(module: nn.Module) -> bool:
    """Whether a BatchNorm's running statistics are still the initial ones, mean 0 and variance 1. note: a host sync"""
    mean, var = (module._buffers.get(name) for name in ("running_mean", "running_var"))
    if var is None:
        return False
    if nn.parameter.is_lazy(var):  # no batch has told it how many channels there are
        return True
    if var.is_meta:
        return False
    return bool((var == 1).all()) and (mean is None or not bool(mean.any()))


class BatchNormPolicy(TrainerCallback, ExportableState):
    """Keeps BatchNorm in evaluation mode in the training steps that `policy` says; its weight and bias train on.

    Trainer sets training mode before every batch, so `hold` is called in each.

    Args:
        policy: "frozen" in every step, "frozen_from_attack" from the first attacked batch on, "trainer" in none.
    """

    def __init__(self, policy: str = FROZEN):
        check_choice("batch_norm", policy, BATCH_NORM)
        self.policy = policy
        self.has_attacked = False
        self._held: tuple[nn.Module, list[nn.Module]] | None = None  # a model, and its BatchNorms

    def hold(self, model: nn.Module, attacks: bool) -> None:
        """Put BatchNorm into evaluation mode for one batch, or leave it as it is.

        Args:
            model: the unwrapped model, in training mode.
            attacks: whether this batch is attacked.
        """
        self.has_attacked = self.has_attacked or attacks
        if self.policy == AS_TRAINER or (self.policy == FROZEN_FROM_ATTACK and not self.has_attacked):
            return
        if self._held is None or self._held[0] is not model:
            self._held = model, batch_norms(model)
        for module in self._held[1]:
            module.eval()

    def state(self) -> dict[str, Any]:
        """What `trainer_state.json` keeps: a resumed run freezes what the interrupted one had frozen."""
        return {"args": {"policy": self.policy}, "attributes": {"has_attacked": self.has_attacked}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs
    ):
        self.has_attacked = remembered(self, state).get("has_attacked", False)
        self.policy = getattr(args, "batch_norm", self.policy)  # a hyper-parameter search changes it
        self._held = None
        if state.is_world_process_zero:
            tell_of(self.policy, batch_norms(model))


def tell_of_start(args: Any, model: nn.Module, eps: float) -> None:
    """Say where a policy that waits for the first attack waits for nothing: `eps`, of the first step, is not 0.

    A frozen backbone's statistics stand still whatever the policy.
    """
    if args.batch_norm == FROZEN_FROM_ATTACK and args.freeze != "backbone" and eps > 0 and batch_norms(model):
        logger.warning(
            "batch_norm=frozen_from_attack acts as frozen under eps_schedule=%s, which attacks from the first step on: "
            "no statistics adapt. Take a schedule that begins with eps 0, as hinge does, or batch_norm=trainer.",
            args.eps_schedule,
        )


def tell_of(policy: str, norms: list[nn.Module]) -> None:
    """Say where a policy does nothing, or not what its name says.

    Args:
        norms: the model's `batch_norms`.
    """
    if not norms:
        asked = logging.INFO if policy == FROZEN else logging.WARNING  # by default nobody asked
        logger.log(asked, "batch_norm=%s does nothing: the model has no BatchNorm.", policy)
        return
    without = 0 if policy == AS_TRAINER else sum(not has_statistics(module) for module in norms)
    if without:
        logger.warning(
            "batch_norm=%s cannot freeze %d of the model's %d BatchNorm layers, which keep no running statistics "
            "(track_running_stats=False): they normalise by the batch in training, attack and evaluation alike, so "
            "what the model answers for an image depends on the images beside it.", policy, without, len(norms),
        )  # fmt: skip
    untouched = sum(map(is_untouched, norms)) if policy == FROZEN else 0
    if untouched:
        logger.warning(
            "batch_norm=frozen keeps the statistics of %d of the model's %d BatchNorm layers at mean 0 and variance 1, "
            "which no data have moved (random weights, or a new head): these layers normalise nothing. Set batch_norm "
            "to frozen_from_attack, under which statistics adapt while eps is 0, if the schedule begins so, or to "
            "trainer.", untouched, len(norms),
        )  # fmt: skip
