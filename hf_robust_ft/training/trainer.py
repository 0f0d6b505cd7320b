"""`transformers.Trainer` on adversarial examples: its own loss, on other pixels."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from hf_robust_ft.attacks.pixels import PixelSpace
from hf_robust_ft.attacks.random_state import random_state_kept
from hf_robust_ft.training import checks
from hf_robust_ft.training.adversary import Adversary
from hf_robust_ft.training.arguments import AdversarialTrainingArguments
from hf_robust_ft.training.attack_watch import AttackWatch
from hf_robust_ft.training.base.trainer import BaseTrainer
from hf_robust_ft.training.batch import batch_of
from hf_robust_ft.training.compiled_model import model_for_attack
from hf_robust_ft.training.objectives import Passes
from hf_robust_ft.training.objectives.structures import step_objective
from hf_robust_ft.training.pixel_space_sources import find_pixel_space
from hf_robust_ft.training.tuning.batch_norm import BatchNormPolicy


class AdversarialTrainer(BaseTrainer):
    """`Trainer` that trains on each batch after an attack at the scheduled eps, and whose `evaluate()` also attacks.

    The normalisation of `pixel_values` is read from `processing_class`, the checkpoint's image processor, given as
    `pixel_space`, or else found where data or model state it, which is logged. `evaluate()` adds `clean_accuracy` and,
    when `args.robust_eval` says so, `adversarial_accuracy`, `expected_robustness` and `reliable` (1.0 where the
    report's `reliability` is "ok"); the whole curve is then in `robustness_report`. Every log carries `eps`.

    Raises:
        TypeError: `args` are plain `TrainingArguments`, not `AdversarialTrainingArguments`.
        ValueError: what `training.checks` refuses: no usable normalisation, data or a set-up no attack can work on.
        RuntimeError: in training, a subclass whose `compute_loss` or `training_step` does not call this one's.
    """

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: AdversarialTrainingArguments | None = None,
        data_collator: Callable | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        model_init: Callable[..., PreTrainedModel] | None = None,
        compute_loss_func: Callable | None = None,
        compute_metrics: Callable | None = None,
        callbacks: list | None = None,
        optimizers: tuple = (None, None),
        optimizer_cls_and_kwargs: tuple | None = None,
        preprocess_logits_for_metrics: Callable | None = None,
        *,
        pixel_space: PixelSpace | None = None,
    ):
        args = checks.checked_args(args)
        data = [train_dataset, *checks.datasets_of(eval_dataset)]
        self.pixel_space = find_pixel_space(pixel_space, processing_class, model, data, data_collator)
        checks.check_data(args, model, data, eval_dataset, data_collator, compute_metrics)
        self.evaluation: Any = None  # the one under way
        super().__init__(
            model=model,
            args=args,
            data_collator=checks.collator_in_use(data_collator),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            model_init=model_init,
            compute_loss_func=compute_loss_func,
            compute_metrics=compute_metrics,
            callbacks=[AttackWatch(self, AdversarialTrainer), *checks.with_watchers(callbacks, args)],
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        compiled = partial(model_for_attack, accelerator=self.accelerator)
        sharded = self.is_fsdp_enabled
        self.adversary = Adversary(self.pixel_space, self.label_names, compiled, is_sharded=sharded, task=self.task)
        checks.check_built(self, train_dataset, eval_dataset)

    def get_train_dataloader(self) -> DataLoader:
        own, self.data_collator = self.data_collator, checks.checked_collator(self)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = own

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.callback_of(AttackWatch).note(model.training)
        inputs, ids = batch_of(self, inputs, model.training)
        if model.training:
            adversarial = self._attacked(inputs, ids)
            passes = Passes.of(self, super().compute_loss, model, inputs, num_items_in_batch)
            loss, outputs, _ = found = step_objective(self)(passes, inputs["pixel_values"], adversarial)
            self.note_loss(found, inputs.get("labels"))
        else:
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            if self.evaluation is not None:
                self.evaluation.outputs = outputs
        return (loss, outputs) if return_outputs else loss

    def _attacked(self, inputs: dict[str, Any], ids: Tensor | None) -> Tensor | None:
        """The batch's images (N, C, H, W), attacked at this step's eps and normalised again; None where that is 0."""
        eps, guard, step = self.budget(inputs, ids), self.overfitting_guard, self.state.global_step
        self.callback_of(BatchNormPolicy).hold(self.model, attacks=eps is not None)
        if eps is None:
            return None
        key = self.args.seed, self.args.process_index, step  # of random starts
        find = partial(self.adversary.attack, self.model, inputs, self.args.threat_model, eps=eps, key=key)
        first = self.args.attacked_in_batch(len(inputs["pixel_values"]))
        result = find(attack=self.args.train_attack_at(self.attack_share), first=first, memory=self.attack_memory)
        self.note_attack(ids, result)
        if guard and guard.watch(step, result, find, self.args.train_attack, self.accelerator):
            self.log({"attack_guard_fell_back_at": step})
        return self.adversary.exchange(inputs, result)["pixel_values"] if isinstance(eps, Tensor) or eps > 0 else None

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        if description != "Prediction":  # predict() returns the model's own predictions and nothing more
            self.evaluation = self.task.evaluation(self, dataloader)
        try:
            with random_state_kept():  # how often is evaluated has no say in the training that goes on
                loop = super().evaluation_loop
                output = loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
                if self.evaluation is not None:
                    output.metrics.update(self.evaluation.conclude(metric_key_prefix))
        finally:
            self.evaluation = None
        return output

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        if self.evaluation is None or inputs.get("labels") is None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        self.evaluation.check(inputs)
        loss, logits, labels = super().prediction_step(model, inputs, False, ignore_keys)
        self.evaluation.measure(inputs)
        return (loss, None, None) if prediction_loss_only else (loss, logits, labels)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        logs["eps"] = self.current_eps
        if "loss" in logs:
            logs |= self.noted() | self.adversary.gradients.once(self.accelerator.mixed_precision)
        super().log(logs, start_time)
        # evaluate() returns this dict, whose figures were not measured at the training eps.
        del logs["eps"]
