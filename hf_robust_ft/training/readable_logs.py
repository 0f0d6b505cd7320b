"""What Trainer prints of its logs and progress: eps as people read it, and no bar in a log file.

What is kept or sent on stays a number.
"""

from typing import Any

from transformers import PrinterCallback, ProgressCallback
from transformers.trainer_callback import CallbackHandler
from transformers.trainer_utils import has_length

from hf_robust_ft.attacks.threat_model import readable_eps
from hf_robust_ft.evaluation.progress import progress_bar

_EPS = ("eps", "best_model_eps")


class _ReadableEps:
    """A callback that prints logs, and is given the text of what is an eps in them.

    Args:
        norm: of the threat model.
    """

    def __init__(self, norm: str, *args: Any):
        super().__init__(*args)
        self.norm = norm

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any):
        if logs:
            logs = {**logs, **{key: readable_eps(logs[key], self.norm) for key in _EPS if key in logs}}
        return super().on_log(args, state, control, logs=logs, **kwargs)


class ReadablePrinter(_ReadableEps, PrinterCallback):
    """What `disable_tqdm` prints by."""


class ReadableProgress(_ReadableEps, ProgressCallback):
    """The bar, and the logs above it; where nobody watches, a line a minute (`progress_bar`)."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.training_bar = progress_bar(state.max_steps, "Training", "steps")
        self.current_step = 0

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and has_length(eval_dataloader):
            if self.prediction_bar is None:
                self.prediction_bar = progress_bar(len(eval_dataloader), "Evaluation", "batches", leave=False)
            self.prediction_bar.update(1)


def print_readable_eps(handler: CallbackHandler, norm: str) -> None:
    """Put these in place of Trainer's own printers; `remove_callback(PrinterCallback)` and the like still find them."""
    for index, callback in enumerate(handler.callbacks):
        if type(callback) is PrinterCallback:
            handler.callbacks[index] = ReadablePrinter(norm)
        elif type(callback) is ProgressCallback:
            handler.callbacks[index] = ReadableProgress(norm, callback.max_str_len)
