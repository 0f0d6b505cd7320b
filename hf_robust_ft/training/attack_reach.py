"""Whether what an attack achieves reaches the network that learns: the loss that training sees over the loss found."""

import logging
from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from hf_robust_ft.attacks import AttackResult
from hf_robust_ft.attacks.cross_entropy import likeliest
from hf_robust_ft.attacks.dense_losses import most_are_wrong
from hf_robust_ft.attacks.losses import LOSSES, get_loss
from hf_robust_ft.reporting.reach import LEAST, REACH, reach_sentence
from hf_robust_ft.training.objectives.passes import logits_of
from hf_robust_ft.training.remembered import remembered
from hf_robust_ft.training.tuning.batch_norm import AS_TRAINER, batch_norms

logger = logging.getLogger(__name__)

FEWEST_IMAGES = 256  # over all processes; a ratio over fewer is not judged
LEAST_LOSS = 0.05  # found, mean per image; over less, a ratio is noise


class AttackReach(TrainerCallback, ExportableState):
    """Compares the attack's final loss with the loss of the training step on the same adversarial images.

    The attack runs in evaluation mode, the step in training mode, which batch statistics and dropout make another
    network. Where that one hardly feels the attack, it learns little from it. Both losses are there anyway: their sums
    stay on the device until a log is due, and are then summed over the processes.

    It is plain cross-entropy on either side, whatever training minimises; the share of errors where the attack climbs
    another loss, whose values have no ratio. `trainer_state.json` keeps what was found of the run so far.
    """

    def __init__(self):
        self._forget()

    def _forget(self) -> None:
        # Loss found, loss seen, images: of the run, since it was last judged, since it was last logged.
        self.total, self.unjudged, self._unlogged = [0.0] * 3, [0.0] * 3, [0.0] * 3
        self.lowest: float | None = None  # ratio, of the stretches that were judged
        self._attacked: AttackResult | None = None
        self._sums: Tensor | None = None

    def found(self, attacked: AttackResult) -> None:
        """Take in what the attack on the batch at hand achieved."""
        self._attacked = attacked

    def see(self, outputs: Any, labels: Tensor | None, attack_loss: str, task: Any = None) -> None:
        """Take in what the training step made of that batch; nothing where it was not attacked.

        Args:
            outputs: the model's, in training mode, of the whole batch or of its last images.
            labels: (N,) class indices, shares of classes (N, K), or masks (N, H, W).
            attack_loss: what the attack climbed, a key of `LOSSES`.
            task: a `training.tasks.Task`; None for one label an image.
        """
        attacked, self._attacked = self._attacked, None
        logits = None if attacked is None else _logits_in_training(outputs, labels, task)
        if logits is None:
            return
        labels = labels if task is None else task.attack_labels(labels)
        if (count := len(attacked.loss)) < len(labels):  # only the batch's first images were attacked
            logits, labels = logits[:count], labels[:count]
        labels, loss, fooled = (each[-len(logits) :] for each in (labels, attacked.loss, attacked.fooled))
        climbed = get_loss(attack_loss)
        if climbed.reports_cross_entropy:
            ce = LOSSES["pixel_ce" if climbed.dense else "ce"]
            found, seen = loss, ce.value(ce.objective(logits, labels))
        elif climbed.dense:
            found, seen = fooled.float(), most_are_wrong(logits.argmax(1), labels).float()
        else:
            found, seen = fooled.float(), (logits.argmax(1) != likeliest(labels)).float()
        sums = torch.stack([found.sum(), seen.sum(), torch.ones_like(found).sum()])
        self._sums = sums if self._sums is None else self._sums + sums

    def once(self) -> dict[str, float]:
        """The ratio for the log that is due; none if no attack ran since the last one."""
        (found, seen, _), self._unlogged = self._unlogged, [0.0] * 3
        return {REACH: seen / found} if found > 0 else {}

    def described(self) -> dict[str, Any]:
        """What a report says: the ratio over the run, and the lowest of a stretch of it; nothing without attacks."""
        if self.total[0] == 0:
            return {}
        overall = round(self.total[1] / self.total[0], 4)
        return {REACH: {"overall": overall, "lowest": overall if self.lowest is None else round(self.lowest, 4)}}

    def state(self) -> dict[str, Any]:
        """What `trainer_state.json` keeps."""
        return {"args": {}, "attributes": {name: getattr(self, name) for name in ("total", "unjudged", "lowest")}}

    # ---- Trainer's events ------------------------------------------------------------

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self._forget()
        vars(self).update(remembered(self, state))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if control.should_log or control.should_save:  # a checkpoint holds what was seen until then
            self._settle(args, state, kwargs.get("model"))

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self.on_step_end(args, state, control, **kwargs)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self._settle(args, state, kwargs.get("model"))

    def _settle(self, args: TrainingArguments, state: TrainerState, model: Any) -> None:
        """Read the sums of all processes, each of which calls this. note: a host sync"""
        if self._sums is None:
            return
        sums, self._sums = reduce(self._sums, "sum").tolist(), None
        for held in (self.total, self.unjudged, self._unlogged):
            held[:] = (before + new for before, new in zip(held, sums, strict=True))
        found, seen, images = self.unjudged
        if images < FEWEST_IMAGES:
            return
        self.unjudged = [0.0] * 3
        if found < LEAST_LOSS * images:
            return
        told = self.lowest is not None and self.lowest < LEAST
        self.lowest = min(seen / found, float("inf") if self.lowest is None else self.lowest)
        if self.lowest < LEAST and not told and state.is_world_process_zero:
            logger.warning("%s %s", reach_sentence(self.lowest), _cure(args, model))


def _cure(args: Any, model: Any) -> str:
    by_batch = getattr(args, "batch_norm", None) == AS_TRAINER and model is not None and batch_norms(model)
    if by_batch and getattr(args, "twins_lambda", None) is not None:
        return (
            "The adaptive branch of TWINS normalises by the batch in training: set batch_norm='frozen_from_attack' "
            "under a schedule that begins with eps 0, or leave twins_lambda out."
        )
    if by_batch:
        return "Its BatchNorm normalises by the batch in training: set batch_norm='frozen'."
    return "Lower what makes training mode another network than evaluation mode: dropout, stochastic depth."


def _logits_in_training(outputs: Any, labels: Tensor | None, task: Any) -> Tensor | None:
    """(N, K, ...) in float32; None where training mode has no one set of them (auxiliary heads)."""
    try:
        logits = logits_of(outputs) if task is None else task.training_logits(outputs, labels=labels)
        return logits.detach().float()
    except ValueError:
        return None
