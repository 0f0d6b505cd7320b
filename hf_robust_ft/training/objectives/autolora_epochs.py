"""What AutoLoRA does between epochs: measure the branch, halve the rate, go back to the best weights."""

import logging
from collections.abc import Iterable
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from hf_robust_ft.attacks.random_state import random_state_kept
from hf_robust_ft.schedules.sample_ids import without_ids
from hf_robust_ft.training.objectives.autolora import NaturalNetwork
from hf_robust_ft.training.objectives.autolora_rate import LEAST_RATE, AutoLoraRecord, halvings
from hf_robust_ft.training.objectives.passes import logits_of

logger = logging.getLogger(__name__)

MEASURED = "eval_adversarial_accuracy"


class AutoLoraEpochs(TrainerCallback):
    """Before each epoch the branch's accuracy, after each evaluation the learning rate's rule.

    Trainer saves after it evaluates, so going back to the best weights waits for the next epoch. Whatever is decided
    stands in the `AutoLoraRecord`, which checkpoints keep.

    Args:
        trainer: an `AdversarialTrainer` of a model with its branch.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer

    @property
    def record(self) -> AutoLoraRecord:
        return self.trainer.callback_of(AutoLoraRecord)

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        epoch = state.global_step // self.trainer.scheduler_callback.steps_per_epoch
        if self.record.measured != epoch:  # else a checkpoint within this epoch says it
            self.record.accuracy = natural_accuracy(self.trainer, args.seed + epoch)
            self.record.measured = epoch
        if self.record.goes_back:
            self.record.goes_back = False
            self.trainer.go_back_to(state.best_model_checkpoint)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics=None, **kwargs: Any
    ):
        scheduler, record = self.trainer.scheduler_callback, self.record
        if not self.trainer.is_in_train or args.autolora_rate == "off" or MEASURED not in (metrics or {}):
            return
        if state.global_step == 0 or state.global_step % scheduler.steps_per_epoch:  # eval_on_start, or an interruption
            return
        if scheduler.trained_eps < scheduler.target_eps * (1 - 1e-9):
            return  # while eps rises robust accuracy may fall by design
        record.robust_accuracies.append(metrics[MEASURED])
        checks = halvings(record.robust_accuracies, args.autolora_window, args.autolora_rate)
        if (len(record.robust_accuracies) - 1) % args.autolora_window or not checks or not checks[-1]:
            return
        record.goes_back = True
        rate = halve_rates(kwargs["optimizer"], kwargs["lr_scheduler"])
        control.should_training_stop = control.should_training_stop or rate < LEAST_RATE
        if state.is_world_process_zero:
            then = "training ends" if rate < LEAST_RATE else "the best weights go on"
            logger.info("AutoLoRA halves the learning rate to %.3g after step %d; %s.", rate, state.global_step, then)


def halve_rates(optimizer: torch.optim.Optimizer, scheduler: Any) -> float:
    """Halve what a constant schedule multiplies, and the rates of the step to come; the largest that is left.

    `initial_lr` stays: resuming compares it with the arguments.
    """
    scheduler.base_lrs = [rate / 2 for rate in scheduler.base_lrs]
    for group in optimizer.param_groups:
        group["lr"] /= 2
    return max(group["lr"] for group in optimizer.param_groups)


def natural_accuracy(trainer: Any, seed: int) -> float:
    """The share of the training images that the branch gets right in evaluation mode, with training's transforms.

    Every process counts its share. Costs one forward an image.

    Args:
        seed: of what the transforms draw; the global random state is left alone.
    """
    model, modes = trainer.model, [(module, module.training) for module in trainer.model.modules()]
    counts = torch.zeros(2, dtype=torch.int64, device=trainer.args.device)
    try:
        with random_state_kept(), torch.no_grad():
            set_seed(seed)
            network = NaturalNetwork(model.eval())
            for batch in _in_order(trainer):
                inputs, _ = without_ids(trainer._prepare_inputs(batch))
                labels = inputs["labels"]
                shown = {name: value for name, value in inputs.items() if name not in trainer.label_names}
                right = logits_of(network(**shown)).argmax(1) == labels
                right = trainer.accelerator.gather_for_metrics(right)  # without the images that fill the last batch
                counts += torch.stack([right.sum(), torch.ones_like(right).sum()])
    finally:
        for module, training in modes:
            module.training = training
    right, images = counts.tolist()
    return right / images


def _in_order(trainer: Any) -> Iterable[dict[str, Any]]:
    """Batches of the training images, each once; `get_eval_dataloader` may hand out another's persistent workers."""
    return trainer._get_dataloader(
        trainer.train_dataset, "training accuracy", trainer.args.eval_batch_size, trainer._get_eval_sampler
    )
