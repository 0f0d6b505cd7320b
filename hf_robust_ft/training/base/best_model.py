"""Which checkpoint is the best of a run whose eps changes, and which weights training returns."""

import copy
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import SaveStrategy

from hf_robust_ft.attacks.threat_model import format_eps, readable_eps
from hf_robust_ft.training.arguments import is_robust_metric
from hf_robust_ft.training.base.publishing import PublishingTrainer
from hf_robust_ft.training.scheduler import EpsilonSchedulerCallback

logger = logging.getLogger(__name__)

SAME = 1e-9  # two eps that differ by less are one


class BestModelRecord(TrainerCallback, ExportableState):
    """What `trainer_state.json` keeps of the best model beside Trainer's own metric and step."""

    def __init__(self):
        self._forget()

    def _forget(self) -> None:
        self.eps: float | None = None  # that the best weights so far were trained at
        self.peaked = False  # whether an evaluation has seen weights of the largest eps
        self.loaded: tuple[int, float] | None = None  # step and eps of the weights that replaced the last ones

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"eps": self.eps, "peaked": self.peaked}}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self._forget()
        saved = state.stateful_callbacks.get(type(self).__name__)  # a checkpoint may come from before it
        if saved and state.global_step > 0:
            vars(self).update(copy.deepcopy(saved["attributes"]))


class SelectingTrainer(PublishingTrainer):
    """`PublishingTrainer` whose best model is one of those trained at the largest eps that was reached.

    Clean accuracy is best before the first attack, so it says nothing across eps. Of two evaluations the one of weights
    trained at the larger eps (`EpsilonSchedulerCallback.trained_eps`) is the better, whatever was measured; at the same
    eps `metric_for_best_model` decides, as in Trainer. A robust metric always decides by itself.

    - An `EarlyStoppingCallback` begins to count after the first evaluation at the schedule's largest eps.
    - Where no weights of the largest eps were evaluated and saved, training returns the last ones, and says so.
    - Log, report and card say which step and eps the returned weights are of.
    """

    def __init__(self, *args: Any, callbacks: list | None = None, **kwargs: Any):
        super().__init__(*args, callbacks=[BestModelRecord(), *(callbacks or [])], **kwargs)

    @property
    def scheduler_callback(self) -> EpsilonSchedulerCallback:
        """The live scheduler. Resuming may rebuild callbacks, so it is looked up each time."""
        found = [entry for entry in self.callback_handler.callbacks if isinstance(entry, EpsilonSchedulerCallback)]
        if len(found) != 1:
            raise ValueError(f"AdversarialTrainer needs exactly one EpsilonSchedulerCallback, found {len(found)}.")
        return found[0]

    @property
    def current_eps(self) -> float:
        """The budget of the step at hand, in pixel units of [0, 1]; the mean of the images' own, if they have such."""
        return self.scheduler_callback.current_eps

    @property
    def best_model_record(self) -> BestModelRecord:
        """The live record, looked up as `scheduler_callback`."""
        return next(entry for entry in self.callback_handler.callbacks if isinstance(entry, BestModelRecord))

    def described_weights(self) -> dict[str, Any]:
        """Of which optimizer step the model's weights are and at which eps it was trained; empty before training."""
        if self.state.global_step == 0:
            return {}
        loaded = self.best_model_record.loaded
        step, eps = loaded or (self.state.global_step, self.scheduler_callback.trained_eps)
        chosen = {"weights_chosen_by": self.args.metric_for_best_model} if loaded else {}
        return {"weights_step": step, "weights_eps": self._written(eps), **chosen}

    # ---- The best of what was evaluated ----------------------------------------------

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if self.control.should_evaluate and self._supersedes() and self._is_kept():
            # Before the evaluation: early stopping compares with it, and it is the first of its eps.
            self.state.best_metric = self.state.best_global_step = self.state.best_model_checkpoint = None
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        scheduler, record = self.scheduler_callback, self.best_model_record
        is_less = self._compares_eps() and scheduler.trained_eps < self._best_eps() - SAME
        cannot_be_loaded = self._supersedes() and not self._is_kept()
        is_best = not is_less and not cannot_be_loaded and super()._determine_best_metric(metrics, trial)
        if is_best:
            record.eps = scheduler.trained_eps
        if self._is_kept() and scheduler.has_peaked(self.state.global_step, self.state.max_steps):
            record.peaked = True
        return is_best

    def _compares_eps(self) -> bool:
        """Whether eps comes before the metric."""
        metric = self.args.metric_for_best_model
        return metric is not None and self.scheduler_callback.peak_eps > 0 and not is_robust_metric(metric)

    def _best_eps(self) -> float:
        """The eps of the best weights so far; -1 without any."""
        record, step = self.best_model_record, self.state.best_global_step
        if record.eps is None and step:  # resumed from a checkpoint without our record
            return self.scheduler_callback.eps_at(step - 1, self.state.max_steps)
        return -1.0 if record.eps is None else record.eps

    def _supersedes(self) -> bool:
        """Whether the weights at hand were trained at a larger eps than the best so far, if there are any."""
        best = self._best_eps()
        return self._compares_eps() and 0 <= best < self.scheduler_callback.trained_eps - SAME

    def _is_kept(self) -> bool:
        """Whether the weights that are evaluated could be loaded at the end: `save_steps` may skip evaluations."""
        by_schedule = self.args.save_strategy in (SaveStrategy.STEPS, SaveStrategy.EPOCH)
        return self.control.should_save or not (by_schedule and self.args.load_best_model_at_end)

    # ---- Early stopping --------------------------------------------------------------

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self._early_stopping_waits():
            return super().evaluate(*args, **kwargs)

    @contextmanager
    def _early_stopping_waits(self) -> Iterator[None]:
        """Endless patience during an evaluation while eps has yet to reach its largest value."""
        waits = self.is_in_train and self.scheduler_callback.peak_eps > 0 and not self.best_model_record.peaked
        stopping = [entry for entry in self.callback_handler.callbacks if isinstance(entry, EarlyStoppingCallback)]
        patience = [(entry, entry.early_stopping_patience) for entry in stopping if waits]
        for entry, _ in patience:
            entry.early_stopping_patience = math.inf
        try:
            yield
        finally:
            for entry, own in patience:
                entry.early_stopping_patience, entry.early_stopping_patience_counter = own, 0

    # ---- What training returns -------------------------------------------------------

    def _load_best_model(self) -> None:
        if self._supersedes():
            last, best = self._written(self.scheduler_callback.trained_eps), self._written(self._best_eps())
            self._tell(
                f"No weights trained at eps {last} were both evaluated and saved, the best of {best} is "
                f"{self.state.best_model_checkpoint}: training returns the last weights. Evaluate and save at its end, "
                "too."
            )
            self.state.best_model_checkpoint = None
            return
        super()._load_best_model()
        step = int(Path(self.state.best_model_checkpoint).name.rsplit("-", 1)[1])
        scheduler = self.scheduler_callback
        is_pure = not scheduler.alpha.has_memory and not scheduler.alpha.is_random
        eps = scheduler.eps_at(step - 1, self.state.max_steps) if is_pure else self._best_eps()
        self.best_model_record.loaded = step, eps
        self.log({"best_model_step": step, "best_model_eps": eps})
        if eps < scheduler.target_eps - SAME and not scheduler.alpha.is_per_sample:
            self._tell(
                f"The best model by {self.args.metric_for_best_model} is of step {step} of {self.state.max_steps}, "
                f"trained at eps {self._written(eps)}, below {format_eps(scheduler.target_eps)}."
            )

    def _written(self, eps: float) -> str:
        """An eps on the way to the largest is a whole number of 255ths only by chance."""
        is_on_the_way = eps < self.scheduler_callback.target_eps - SAME
        return readable_eps(eps, self.args.norm) if is_on_the_way else format_eps(eps)

    def _tell(self, message: str) -> None:
        if self.is_world_process_zero():
            logger.warning(message)
