"""A subclass that goes past the attack is told, before its weights change: nothing else would show it."""

import logging

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_robust_ft.attacks.threat_model import readable_eps

logger = logging.getLogger(__name__)

CURES = (
    "Let your compute_loss call super().compute_loss(model, inputs, ...), with return_outputs=True where it needs the "
    "logits of the attacked images; for another loss, class weights say, leave compute_loss alone and pass "
    "compute_loss_func=, a function of (outputs, labels, num_items_in_batch). A training_step of your own calls "
    "super().training_step(model, inputs, num_items_in_batch)."
)


class AttackWatch(TrainerCallback):
    """Raises where an optimizer step that should be attacked never came to `AdversarialTrainer.compute_loss`.

    It counts calls, so it costs nothing and no device is waited for. While eps is still 0 it only warns, once.

    Args:
        trainer: the `AdversarialTrainer`, for its scheduler and for who overrides what.
        base: the class whose methods have to be called.
    """

    def __init__(self, trainer: Trainer, base: type[Trainer]):
        self.trainer, self.base = trainer, base
        self.in_training = self.in_evaluation = 0  # batches of this optimizer step, by the mode of the model
        self._has_warned = self._has_warned_of_evaluation = False

    def note(self, is_training: bool) -> None:
        """A batch came to `AdversarialTrainer.compute_loss`, with the model in training mode or not."""
        self.in_training += is_training
        self.in_evaluation += not is_training

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self.in_training = self.in_evaluation = 0

    def on_pre_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        scheduler = self.trainer.scheduler_callback
        if scheduler.peak_eps == 0:
            return
        if self.in_training == 0:
            self._tell_unattacked(state, is_due=scheduler.alpha.is_per_sample or scheduler.current_eps > 0)
        elif scheduler.alpha.observes == "loss" and scheduler.observed_at <= state.global_step:
            raise RuntimeError(
                f"eps_schedule={scheduler.alpha.name!r} follows the loss of each step, which {self._overriding()} did "
                f"not tell it, so eps would never rise. {CURES}"
            )

    def _tell_unattacked(self, state: TrainerState, is_due: bool) -> None:
        scheduler = self.trainer.scheduler_callback
        step = f"optimizer step {state.global_step + 1} of {state.max_steps}"
        eps = f"eps {readable_eps(scheduler.current_eps or scheduler.peak_eps, self.trainer.args.norm)}"
        if self.in_evaluation:
            cause = "the model was in evaluation mode when compute_loss was called (model.eval()?), in which none runs."
            cure = "Leave the model itself in training mode and set single modules to eval()."
        else:
            cause = f"{self._overriding()} did not call {self.base.__name__}'s."
            cure = CURES
        if is_due:
            raise RuntimeError(f"No attack ran in {step}, which trains at {eps}: {cause} {cure}")
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                f"No attack will run once eps rises above 0, which will be an error then (now {step}): {cause} {cure}",
            )

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics=None, **kwargs
    ):
        overriding = self._overriders(("evaluation_loop", "prediction_step"))
        if not overriding or args.robust_eval == "no" or self._has_warned_of_evaluation:
            return
        if not any(key.endswith(self.trainer.task.metrics[0]) for key in metrics or {}):
            self._has_warned_of_evaluation = True
            logger.warning(
                f"This evaluation measured no robustness: {' and '.join(overriding)} did not call "
                f"{self.base.__name__}'s. Call super() there and change what it returns.",
            )

    def _overriding(self) -> str:
        return " and ".join(self._overriders(("compute_loss", "training_step"))) or "compute_loss or training_step"

    def _overriders(self, methods: tuple[str, ...]) -> list[str]:
        """Where subclasses, or the object itself, replace these methods: `Class.method`."""
        kind = type(self.trainer)
        subclasses = kind.__mro__[: kind.__mro__.index(self.base)]
        found = [f"{each.__name__}.{name}" for name in methods for each in subclasses if name in vars(each)]
        return found + [f"the trainer's own {name}" for name in methods if name in vars(self.trainer)]
