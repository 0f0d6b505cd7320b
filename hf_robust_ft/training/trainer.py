"""`transformers.Trainer` on adversarial examples: only the pixels of a batch are exchanged."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from hf_robust_ft.attacks import APGD, AttackResult, attack_mode, use_memory_format
from hf_robust_ft.attacks.batch_checks import CheckedCollator, check_batch, check_first_batch
from hf_robust_ft.attacks.pixels import PixelClassifier, PixelSpace
from hf_robust_ft.attacks.precision import GradientReport, check_input_precision
from hf_robust_ft.attacks.random_state import KeyedGenerator
from hf_robust_ft.attacks.threat_model import readable_eps
from hf_robust_ft.evaluation.batches import first_images
from hf_robust_ft.provenance.record import environment_facts
from hf_robust_ft.provenance.redacted_command import script_command
from hf_robust_ft.schedules.sample_ids import SAMPLE_ID, IdentifyingCollator, check_identified
from hf_robust_ft.training import checks as trainer_checks
from hf_robust_ft.training.arguments import AdversarialTrainingArguments
from hf_robust_ft.training.attack_reach import AttackReach
from hf_robust_ft.training.attack_watch import AttackWatch
from hf_robust_ft.training.attacked_model import model_for_attack, settle_loss
from hf_robust_ft.training.base.resuming import TrainingRecord, check_resumed, training_settings, with_record
from hf_robust_ft.training.best_model import SelectingTrainer
from hf_robust_ft.training.guard import CHECKED_IMAGES as GUARDED_IMAGES
from hf_robust_ft.training.guard import OverfittingGuard
from hf_robust_ft.training.pixel_space_sources import find_pixel_space
from hf_robust_ft.training.training_batches import batch_sizes
from hf_robust_ft.training.tuning.batch_norm import BatchNormPolicy


class AdversarialTrainer(SelectingTrainer):
    """`Trainer` whose `compute_loss` sees the batch after an attack at the scheduled eps.

    Takes `Trainer`'s arguments, of which `args` must be `AdversarialTrainingArguments`; the normalisation of
    `pixel_values` is read from `processing_class`, the checkpoint's image processor, given as `pixel_space`, or else
    found where data or model state it, which is logged (`find_pixel_space`).

    `evaluate()` adds `clean_accuracy` and, when `args.robust_eval` says so, `adversarial_accuracy` and
    `expected_robustness`, with `reliable` (1.0 where the report's `reliability` is "ok"; trust checks run only after
    training); the whole curve is then in `robustness_report`. Every log carries `eps`.

    Raises:
        TypeError: `args` are plain `TrainingArguments`.
        ValueError: no or no usable image processor, reentrant checkpointing, DeepSpeed ZeRO-3, more than one
            `EpsilonSchedulerCallback`, or data an attack cannot work on.
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
        args = AdversarialTrainingArguments(output_dir="tmp_trainer") if args is None else args
        trainer_checks.check_args(args)
        data = (train_dataset, *trainer_checks.datasets_of(eval_dataset))
        pixel_space = find_pixel_space(pixel_space, processing_class, model, data, data_collator)
        trainer_checks.check_best_metric(args, compute_metrics is not None, eval_dataset)
        for dataset in data:
            trainer_checks.check_dataset(dataset, args, has_collator=data_collator is not None)
        self._attack_watch = AttackWatch(self, AdversarialTrainer)
        callbacks = trainer_checks.with_guard(trainer_checks.with_scheduler(callbacks, args), args)
        own = [self._attack_watch, BatchNormPolicy(args.batch_norm), AttackReach()]
        super().__init__(
            model=model,
            args=args,
            data_collator=trainer_checks.collator_in_use(data_collator),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            model_init=model_init,
            compute_loss_func=compute_loss_func,
            compute_metrics=compute_metrics,
            callbacks=[*own, *with_record(callbacks)],
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
            pixel_space=pixel_space,
        )
        trainer_checks.check_sharded(args, self.is_fsdp_enabled)
        trainer_checks.check_model(self.model)
        trainer_checks.check_labels(train_dataset, self.num_labels, at_least=2)
        for dataset in trainer_checks.datasets_of(eval_dataset):
            trainer_checks.check_labels(dataset, self.num_labels)
        if self.model_init is None:
            use_memory_format(self.model, args.memory_format_in_use)
        self._for_attack: tuple[nn.Module, nn.Module] | None = None  # the model, and what attacks run through
        self._first_batch_checked = False
        self._gradients = GradientReport()
        self._random_starts = KeyedGenerator()
        trainer_checks.check_schedule(self.scheduler_callback, train_dataset, eval_dataset)

    def _callbacks(self, kind: type) -> list:
        """The live ones of a kind. Resuming may rebuild callbacks, so they are looked up each time."""
        return [entry for entry in self.callback_handler.callbacks if isinstance(entry, kind)]

    @property
    def overfitting_guard(self) -> OverfittingGuard | None:
        """The live guard over few-step attacks; None without `attack_guard`."""
        return next(iter(self._callbacks(OverfittingGuard)), None)

    def describe_position(self) -> str:
        return f"{super().describe_position()} (eps {readable_eps(self.current_eps, self.args.norm)})"

    @property
    def training_record(self) -> TrainingRecord:
        """What checkpoints say they were trained with."""
        return self._callbacks(TrainingRecord)[0]

    # ---- Training ----------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any):
        """As `Trainer.train`; a checkpoint that was trained with other settings is refused, see `check_resumed`."""
        if resume_from_checkpoint:
            record = self.training_record
            wanted = record.settings | training_settings(self.args, self.train_dataset)
            record.changes = check_resumed(resume_from_checkpoint, wanted, self.args)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def call_model_init(self, trial: Any = None) -> nn.Module:
        model = super().call_model_init(trial)
        use_memory_format(model, self.args.memory_format_in_use)
        return model

    def get_train_dataloader(self) -> DataLoader:
        collate = self.data_collator
        self.data_collator = CheckedCollator(collate, self.pixel_space, self.num_labels)
        # By the arguments, too: a hyper-parameter search sets them before the callback reads them.
        if self.args.needs_sample_ids or self.scheduler_callback.alpha.is_per_sample:
            self.data_collator = IdentifyingCollator(self.data_collator)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = collate

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ):
        self._attack_watch.note(model.training)
        ids = inputs.get(SAMPLE_ID)
        if ids is not None:
            inputs = {key: value for key, value in inputs.items() if key != SAMPLE_ID}  # not for the model
        labels = inputs.get("labels")  # Trainer takes them out where it computes the loss itself
        if model.training:
            if not self._first_batch_checked:
                self._check_first_batch(inputs)
            scheduler = self.scheduler_callback
            guard = self.overfitting_guard
            attack = self.args.train_attack_at(1.0 if guard and guard.fell_back else scheduler.current_attack_share)
            has_own_eps = scheduler.alpha.is_per_sample and scheduler.peak_eps > 0
            self._callbacks(BatchNormPolicy)[0].hold(self.model, attacks=has_own_eps or scheduler.current_eps > 0)
            if has_own_eps:
                check_identified(ids, inputs)
                inputs = {**inputs, "pixel_values": self._attack_at_own_eps(inputs, ids, attack)}
            elif scheduler.current_eps > 0:
                inputs = {**inputs, "pixel_values": self._attack(inputs, scheduler.current_eps, attack)}
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            self._callbacks(AttackReach)[0].see(outputs, labels, self.args.attack_loss)
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch=None) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        scheduler = self.scheduler_callback
        if scheduler.alpha.observes == "loss":
            scheduler.step_loss = scheduler.step_loss + loss
            if self.accelerator.sync_gradients:  # the last batch of an optimizer step
                mean = self.accelerator.gather(scheduler.step_loss).mean().item()
                scheduler.observe(mean, self.state.global_step + 1, self.state.max_steps)
        return loss

    def _training_classifier(self, inputs: Mapping[str, Any]) -> PixelClassifier:
        """As `_classifier`, compiled where training is; but for the rehearsal, whose two images need no graph."""
        if not self._first_batch_checked:
            return self._classifier(inputs)
        if self._for_attack is None or self._for_attack[0] is not self.model:
            self._for_attack = self.model, model_for_attack(self.model, self.accelerator)
        return self._classifier(inputs, self._for_attack[1])

    def _attack(self, inputs: Mapping[str, Tensor], eps: float, attack: APGD) -> Tensor:
        """Adversarial `pixel_values` for a batch, normalised again and in its dtype."""
        result = self._attacked(inputs, eps, attack)
        self._guard(inputs, eps, result)
        return self._normalised(result, inputs)

    def _attack_at_own_eps(self, inputs: Mapping[str, Tensor], ids: Tensor, attack: APGD) -> Tensor:
        """As `_attack`, each image at the eps of its id; how it ends decides the image's next eps, on all processes."""
        keys = [str(number) for number in ids.tolist()]
        budgets = self.scheduler_callback.eps_of(keys)
        # One forward where no image has a budget; FSDP's forward waits for every rank, which may have some.
        eps = torch.tensor(budgets, dtype=torch.float64, device=ids.device)
        result = self._attacked(inputs, eps if any(budgets) or self.is_fsdp_enabled else 0.0, attack)
        outcomes = gather_object(list(zip(keys, result.fooled.tolist(), strict=True)))
        self.scheduler_callback.record(*zip(*outcomes, strict=True))
        self._guard(inputs, eps, result)
        return self._normalised(result, inputs)

    def _guard(self, inputs: Mapping[str, Tensor], eps: float | Tensor, few_steps: AttackResult) -> None:
        """Once every so often, see whether the images that withstood the training attack withstand a full one."""
        guard, step = self.overfitting_guard, self.state.global_step
        if guard is None or not self._first_batch_checked or not guard.is_due(step):
            return
        eps = eps[:GUARDED_IMAGES] if isinstance(eps, Tensor) else eps
        first = first_images(inputs, GUARDED_IMAGES)
        full = self._attacked(first, eps, replace(self.args.train_attack, random_start=False))
        withstood = ~few_steps.fooled[:GUARDED_IMAGES]
        counts = torch.stack([withstood.sum(), (withstood & ~full.fooled).sum()])
        # note: a host sync
        few, many = self.accelerator.reduce(counts, "sum").tolist()
        if guard.judge(step, few, many):
            self.log({"attack_guard_fell_back_at": step})

    def _normalised(self, result: AttackResult, inputs: Mapping[str, Tensor]) -> Tensor:
        if self._first_batch_checked:  # not of the rehearsal
            self._callbacks(AttackReach)[0].found(result)
        return self.pixel_space.from_pixels(result.adversarial).to(inputs["pixel_values"].dtype)

    def _attacked(self, inputs: Mapping[str, Tensor], eps: float | Tensor, attack: APGD) -> AttackResult:
        pixels = self.pixel_space.clipped_pixels(inputs["pixel_values"])
        with attack_mode(self.model, freeze=not self.is_fsdp_enabled):
            classifier = self._training_classifier(inputs)
            return attack(
                self._gradients.metered(classifier) if self._first_batch_checked else classifier,
                pixels,
                inputs["labels"],
                self.args.threat_model,
                eps=eps,
                generator=self._generator(pixels.device) if attack.random_start else None,
            )

    def _generator(self, device: torch.device) -> torch.Generator:
        """Random starts depend on (seed, rank, step) alone, never on what else draws random numbers."""
        return self._random_starts.at(device, self.args.seed, self.args.process_index, self.state.global_step)

    def _check_first_batch(self, inputs: Mapping[str, Any]) -> None:
        """Check what the attack needs now, not when the schedule first raises eps hours later."""
        if self.args.torch_compile:
            settle_loss(self.model)
        check_first_batch(inputs, self.pixel_space, self.num_labels)
        self._rehearse(inputs, attacked=self.args.threat_model.eps > 0)
        trainer_checks.check_labels(self.train_dataset, self.num_labels)
        check_batch(inputs, self.pixel_space, self.num_labels)  # again, now that the number of classes is known
        check_input_precision(inputs["pixel_values"], self.pixel_space, self.args.threat_model)
        if self.args.threat_model.eps > 0:
            self._attack(first_images(inputs, 2), self.args.threat_model.eps, APGD(steps=1, random_start=False))
        self._first_batch_checked = True

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        logs["eps"] = self.current_eps
        if "loss" in logs:
            logs |= self._callbacks(AttackReach)[0].once()
            logs |= self._gradients.once(self.accelerator.mixed_precision)
        super().log(logs, start_time)
        # evaluate() returns this dict, whose figures were not measured at the training eps.
        del logs["eps"]

    def described_training(self) -> dict[str, Any]:
        """What a report says of the training: its settings, and what came of those that watch it."""
        training = self.scheduler_callback.described(self.args.training_settings())
        if (guard := self.overfitting_guard) is not None:
            training["attack_guard"] = guard.described()
        reach = self._callbacks(AttackReach)[0].described()
        return training | batch_sizes(self) | self.described_weights() | reach

    def _metadata(self) -> dict[str, Any]:
        seeds = {"seed": self.args.seed} | ({} if self.args.data_seed is None else {"data_seed": self.args.data_seed})
        metadata = {"training": self.described_training(), "seeds": seeds, **environment_facts()}
        if self.training_record.changes:
            metadata["resumed_with_changes"] = self.training_record.changes
        if (command := script_command()) is not None:
            metadata["command"] = command
        name = getattr(getattr(self.model, "config", None), "_name_or_path", "")
        if name and not os.path.exists(name):  # a Hub id, not a folder of this machine
            metadata["base_model"] = name
        return metadata
