"""`transformers.Trainer` with what breaks image classification in transformers 5 mended; nothing adversarial here."""

import logging
import os
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import SAFE_WEIGHTS_NAME

from hf_robust_ft.attacks.pixels import input_dtype
from hf_robust_ft.attacks.precision import check_parameter_precision, half_of
from hf_robust_ft.evaluation.batches import check_reads_all
from hf_robust_ft.models.timm_classifier import store_timm_processor
from hf_robust_ft.models.trust import SAFETENSORS, refusals_explained
from hf_robust_ft.training.base.durable import DurableTrainer
from hf_robust_ft.training.base.launching import check_fp16
from hf_robust_ft.training.base.lone_images import lone_images_refused
from hf_robust_ft.training.base.sharding import FSDP1_FORGETS, reduce_gradients_each_batch, without_input_embeddings

logger = logging.getLogger(__name__)


class MendedTrainer(DurableTrainer):
    """`DurableTrainer` that restores every weight, averages accumulated losses, and never saves weights that are NaN.

    - Resuming and load_best_model_at_end load strictly: Trainer drops the weights that `save_pretrained` renames
      (ViT, DeiT, BEiT, DINOv2, Swin). transformers #48805; goes with the first release that holds its #48822.
    - Losses of models that take `num_items_in_batch` and ignore it (ResNet, CLIP, Swinv2, ...) are averaged over
      accumulated batches: Trainer sums them. transformers #47688; goes when every classifier there says
      `accepts_loss_kwargs`, or Trainer asks whether the loss used the count (#43651).

    No report of these was found upstream (transformers 5.24, accelerate 1.15); each can go when its test passes
    without it:

    - FSDP2 shards image models, which accelerate fails at; FSDP1 accumulates gradients between attacks.
    - timm's image processor is saved with the model, in its configuration; its own `save_pretrained` does nothing.
    - A model stored in half precision evaluates images of its own dtype, whatever the data's.
    - Evaluation and prediction read all images: `dataloader_drop_last` is for training.
    - The labels are called `labels`, whatever stands in a model's signature (`**kwargs`).
    - A last training batch of one image that a BatchNorm would fail at is refused before the first step.
    - Weights that are not finite are never saved: Trainer lets them take the last good checkpoint's place.
    - A callback with a state of its own that the checkpoint to resume knows nothing of does not break the next save.
    - On a CPU, loaders do not try to pin memory, which each of them warns of.

    Raises:
        FloatingPointError: a weight is NaN or infinite.
        ValueError: a checkpoint to restore has no weights in safetensors.
        RuntimeError: a checkpoint to restore lacks weights of the model, or holds others.
        ValueError: an evaluation under FSDP2 before training, fp16 on a CPU, training of weights in half precision, a
            loader of the user's that drops images in evaluation, or a training batch of one image under BatchNorm.
    """

    # A classification loss is a mean over its batch.
    loss_is_scaled_for_ga = False

    def __init__(self, *args: Any, compute_loss_func: Callable | None = None, **kwargs: Any):
        super().__init__(*args, compute_loss_func=compute_loss_func, **kwargs)
        self.model_accepts_loss_kwargs = False
        if self.args.device.type == "cpu":
            self.args.dataloader_pin_memory = False
        self._checked_loader: DataLoader | None = None  # for batches of one
        if not self.args.label_names:
            self.label_names = ["labels"]
        if compute_loss_func is not None:
            self.loss_is_scaled_for_ga = None  # it is handed num_items_in_batch: Trainer's own rule holds

    def train(self, *args: Any, **kwargs: Any):
        try:
            return super().train(*args, **kwargs)
        finally:
            self.is_in_train = False  # also when interrupted: evaluate() then attacks as after any training

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any):
        loader = self.callback_handler.train_dataloader
        if not model.training or loader is self._checked_loader:
            return super().compute_loss(model, inputs, *args, **kwargs)
        with lone_images_refused(self.model, loader, self.args, self.state.max_steps):
            loss = super().compute_loss(model, inputs, *args, **kwargs)
        self._checked_loader = loader
        return loss

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Callable | None = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> DataLoader:
        drops = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drops and is_training
        try:
            return super()._get_dataloader(dataset, description, batch_size, sampler_fn, is_training, dataloader_key)
        finally:
            self.args.dataloader_drop_last = drops

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "pixel_values" not in self._signature_columns:  # a wrapper's (*args, **kwargs)
            self._signature_columns.append("pixel_values")

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        check_fp16(self.accelerator.mixed_precision, self.accelerator.device.type)
        if self.is_fsdp_enabled and not self.accelerator.is_fsdp2:
            reduce_gradients_each_batch(self.accelerator)

    def _prepare_for_training(self, *args: Any, **kwargs: Any):
        if not self.is_deepspeed_enabled:  # which keeps a float32 copy
            check_parameter_precision(self.model)
        with without_input_embeddings(self.model) if self.accelerator.is_fsdp2 else nullcontext():
            return super()._prepare_for_training(*args, **kwargs)

    def _load_callback_state(self) -> None:
        super()._load_callback_state()
        for each in self.callback_handler.callbacks:
            if isinstance(each, ExportableState):
                self.state.stateful_callbacks.setdefault(type(each).__name__, {})

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.is_fsdp_enabled and not self.accelerator.is_fsdp2:
            logger.warning(FSDP1_FORGETS)

    def evaluation_loop(self, dataloader: DataLoader, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        if self.accelerator.is_fsdp2 and not self.accelerator._models:
            raise ValueError("FSDP2 shards the model when training begins: evaluate after train(), or without FSDP.")
        check_reads_all(dataloader)
        return super().evaluation_loop(dataloader, *args, **kwargs)

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any):
        if half_of(self.model) is not None and "pixel_values" in inputs:
            inputs = {**inputs, "pixel_values": inputs["pixel_values"].to(input_dtype(self.model))}
        return super().prediction_step(model, inputs, *args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Refuses weights that are not finite: they would take the last good checkpoint's place.

        Raises:
            FloatingPointError: a parameter holds NaN or infinity.
        """
        broken = [name for name, weight in self.model.named_parameters() if not torch.isfinite(weight).all()]
        if broken:
            raise FloatingPointError(
                f"{len(broken)} parameters are NaN or infinite after {self.describe_position()}, first {broken[0]}; "
                f"nothing was saved. {self._last_checkpoint()} Lower the learning rate, or train in bf16 or fp32."
            )
        super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        store_timm_processor(self.processing_class, getattr(self.model, "config", None))
        super()._save(output_dir, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not self._load_all_weights(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if not self._load_all_weights(self.state.best_model_checkpoint):
            super()._load_best_model()

    def _load_all_weights(self, checkpoint: str) -> bool:
        """Load a checkpoint strictly, through `from_pretrained`; False where Trainer's own loading is the right one.

        `save_pretrained` renames some models' weights (ViT, Swin, DINOv2, ...) and Trainer's loading drops those.
        """
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        has_adapters = getattr(self.model, "_hf_peft_config_loaded", False)
        if sharded or has_adapters or hasattr(self.model, "peft_config") or not os.path.isdir(checkpoint):
            return False
        if not isinstance(self.model, PreTrainedModel):
            return self._load_plain_module(os.path.join(checkpoint, SAFE_WEIGHTS_NAME))
        with refusals_explained(checkpoint):
            saved, info = type(self.model).from_pretrained(
                checkpoint,
                dtype=self.model.dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=False,
                **SAFETENSORS,
            )
        incomplete = {kind: sorted(info[kind]) for kind in ("missing_keys", "unexpected_keys") if info[kind]}
        if incomplete:
            raise RuntimeError(f"{checkpoint} does not hold this model's weights: {incomplete}.")
        self.model.load_state_dict(saved.state_dict(), strict=True)
        return True

    def _load_plain_module(self, path: str) -> bool:
        """As `_load_all_weights`, for a module that is not transformers'; Trainer only logs which weights it drops."""
        if not os.path.isfile(path):
            return False
        # As plain Trainer saves a compiled module, or one with compiled parts.
        saved = {name.replace("_orig_mod.", ""): weight for name, weight in load_file(path).items()}
        self.model.load_state_dict(saved, strict=True)
        return True
