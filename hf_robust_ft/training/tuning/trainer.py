"""`MendedTrainer` with the settings of `TuningArguments`; nothing adversarial here."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.trainer_optimizer import is_optimizer_factory

from hf_robust_ft.training.base.upstream_fixes import MendedTrainer
from hf_robust_ft.training.objectives.hidden import load_hidden, save_hidden
from hf_robust_ft.training.tuning.adapting import adapted
from hf_robust_ft.training.tuning.arguments import TuningArguments
from hf_robust_ft.training.tuning.averaging import WeightAveraging
from hf_robust_ft.training.tuning.freezing import frozen_norms, still_modules
from hf_robust_ft.training.tuning.lora import check_adapters, merged
from hf_robust_ft.training.tuning.parameter_groups import parameter_groups, spared_by_decay

# What distributed wrappers and torch.compile put into parameters' names.
WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")


class TuningTrainer(MendedTrainer):
    """`MendedTrainer` that freezes, adapts, groups and averages weights as `TuningArguments` say.

    - The model is frozen or given LoRA adapters before training (`self.model` is then a `PeftModel`). What
      `freeze` names stands still: its dropout and drop path are off and its BatchNorm statistics do not move; with
      LoRA only the latter.
    - Averaged weights are updated after every optimizer step, stored in every checkpoint and restored from it;
      training goes on with the raw ones.
    - Checkpoints hold what training needs to resume: raw weights, or the adapters, and what a method hides.
      `save_model` and `push_to_hub` publish a plain classifier: averaged if asked, and with the adapters merged.

    Raises:
        ValueError: settings the model, the optimizer or the distributed set-up cannot follow.
    """

    args: TuningArguments

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TuningArguments | None = None,
        *,
        model_init: Callable[..., nn.Module] | None = None,
        callbacks: list | None = None,
        optimizers: tuple = (None, None),
        **kwargs: Any,
    ):
        averaging = None if args.ema_decay is None else WeightAveraging(args.ema_decay, args.ema_warmup)
        self.weight_averaging: WeightAveraging | None = averaging
        if optimizers[0] is not None and _own_groups(args):
            raise ValueError("head_learning_rate and layer_decay do nothing to an optimizer that you made yourself.")
        super().__init__(
            model if model is None else self._adapt(model, args),
            args,
            model_init=model_init,
            callbacks=[*([averaging] if averaging else []), *(callbacks or [])],
            optimizers=optimizers,
            **kwargs,
        )
        in_use = {name for name, value in args.tuning_settings().items() if (name, value) != ("freeze", "none")}
        if (self.is_fsdp_enabled or self.is_deepspeed_enabled) and in_use - {"no_decay"}:
            raise ValueError(
                f"{', '.join(sorted(in_use - {'no_decay'}))} are not verified with sharded weights. Leave them unset "
                "under FSDP and DeepSpeed, or train with DDP."
            )

    def call_model_init(self, trial: Any = None) -> nn.Module:
        return self._adapt(super().call_model_init(trial), self.args)

    def _adapt(self, model: nn.Module, args: TuningArguments) -> nn.Module:
        model = self._extended(adapted(model, args), args)
        self._spared_by_decay = spared_by_decay(model)  # by name, before FSDP flattens parameters
        self._still = still_modules(model) if args.freeze != "none" else []
        if args.lora_rank is not None:
            self._still = frozen_norms(model)
        return model

    def _extended(self, model: nn.Module, args: TuningArguments) -> nn.Module:
        """The model with the hidden modules that a method trains beside it (`training.objectives.hidden`)."""
        return model

    # ---- Optimizer ---------------------------------------------------------------

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        names = super().get_decay_parameter_names(model)
        if self.args.no_decay == "trainer":
            return names
        return [name for name in names if _unwrapped(name) not in self._spared_by_decay]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is not None or not _own_groups(self.args):
            return super().create_optimizer(model)
        given = self.optimizer_cls_and_kwargs
        cls, kwargs = given or self.get_optimizer_cls_and_kwargs(self.args, self.model)
        if is_optimizer_factory(cls) or kwargs.keys() & {"params", "model", "optimizer_dict"}:
            raise ValueError(
                f"optim={self.args.optim.value!r} groups its parameters itself, which head_learning_rate and "
                "layer_decay cannot change. Use e.g. optim='adamw_torch'."
            )
        groups = parameter_groups(
            self.model,
            set(self.get_decay_parameter_names(self.model)),
            learning_rate=self.args.learning_rate,
            weight_decay=self.args.weight_decay,
            head_learning_rate=self.args.head_learning_rate,
            layer_decay=self.args.layer_decay,
        )
        # Trainer takes "params" for the groups of an optimizer that comes with its own.
        self.optimizer_cls_and_kwargs = (cls, {**kwargs, "params": groups})
        try:
            return super().create_optimizer(model)
        finally:
            self.optimizer_cls_and_kwargs = given

    # ---- Training ----------------------------------------------------------------

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any):
        if model.training:  # which Trainer sets again before each batch
            for module in self._still:
                module.eval()
        return super().compute_loss(model, inputs, *args, **kwargs)

    # ---- Evaluation --------------------------------------------------------------

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self._averages(wanted_for=("eval", "save")):
            return super().evaluate(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any):
        with self._averages(wanted_for=("eval", "save")):
            return super().predict(*args, **kwargs)

    def _averages(self, wanted_for: tuple[str, ...]):
        """The averaged weights in the model, for a while, where `ema_use` is one of `wanted_for`."""
        if self.weight_averaging is None or self.args.ema_use not in wanted_for:
            return nullcontext()
        return self.weight_averaging.applied(self.model)

    # ---- Checkpoints and publishing ------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Publish the model: averaged weights with `ema_use="save"`, adapters merged.

        Trainer's own checkpoints (which it names a folder for) keep the raw weights or the adapters, and the averages.
        Of a `PeftModel` that came from the user a call by the user saves the adapters, as Trainer's does.
        """
        if _internal_call and output_dir is not None:
            super().save_model(output_dir, _internal_call)
            if self.args.should_save:
                save_hidden(self.model, output_dir)
            if self.weight_averaging is not None and self.args.should_save:
                self.weight_averaging.save(output_dir)
            return
        users_own = self.args.lora_rank is None and not _internal_call
        with self._averages(wanted_for=("save",)), nullcontext() if users_own else self._merged_adapters():
            super().save_model(output_dir, _internal_call)

    @contextmanager
    def _merged_adapters(self) -> Iterator[None]:
        if not hasattr(self.model, "merge_and_unload"):
            yield
            return
        trained = self.model
        self.model = merged(trained)
        try:
            yield
        finally:
            self.model = trained

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.args.lora_rank is not None:
            check_adapters(resume_from_checkpoint, self.model)
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_beside(resume_from_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Refuses other rates than the checkpoint's, which would silently stand in for those of the arguments.

        Raises:
            ValueError: they differ, or other weights were trained.
        """
        wanted = self._rates()
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except ValueError as error:
            if "parameter group" not in str(error):
                raise
            raise ValueError(
                f"The optimizer of {checkpoint} has other groups of weights, which force_resume cannot change: give "
                "the same objective, twins_lambda, autolora, freeze, lora_rank, layer_decay, head_learning_rate and "
                "no_decay again, or train anew in another output_dir."
            ) from error
        differing = [pair for pair in zip(self._rates(), wanted, strict=True) if not np.allclose(*pair, atol=0)]
        if differing:
            old, new = differing[0]
            raise ValueError(
                f"{checkpoint} was trained with other rates: learning rate {old[0]:.3g} and weight decay {old[1]:.3g}, "
                f"where the arguments now say {new[0]:.3g} and {new[1]:.3g}. Resuming would keep the old ones: give "
                "these, or start anew."
            )

    def _rates(self) -> list[tuple[float, float]]:
        """Peak learning rate and weight decay of each parameter group, before any schedule."""
        groups = [] if self.is_deepspeed_enabled or self.optimizer is None else self.optimizer.param_groups
        return [(group.get("initial_lr") or 0.0, group.get("weight_decay") or 0.0) for group in groups]

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._load_beside(self.state.best_model_checkpoint)

    def go_back_to(self, checkpoint: str) -> None:
        """Take up a checkpoint's weights in the midst of training, and all beside them; not the optimizer's state.

        Raises:
            RuntimeError: it is not there.
        """
        if not self._load_all_weights(checkpoint):
            raise RuntimeError(f"There is no checkpoint {checkpoint} to go back to.")
        self._load_beside(checkpoint)

    def _load_beside(self, checkpoint: str) -> None:
        """Read what a checkpoint holds beside the model's own weights."""
        load_hidden(checkpoint, self.model)
        if self.weight_averaging is not None:
            self.weight_averaging.load(checkpoint, self.model)


def _own_groups(args: TuningArguments) -> bool:
    return args.head_learning_rate is not None or args.layer_decay is not None


def _unwrapped(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name
