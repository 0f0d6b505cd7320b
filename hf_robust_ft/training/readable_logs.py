"""The lines that Trainer prints of its logs, with eps as people read it; what is kept or sent on stays a number."""

from typing import Any

from transformers import PrinterCallback, ProgressCallback
from transformers.trainer_callback import CallbackHandler

from hf_robust_ft.attacks.threat_model import readable_eps

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
    """The bar, and the logs above it."""


def print_readable_eps(handler: CallbackHandler, norm: str) -> None:
    """Put these in place of Trainer's own printers; `remove_callback(PrinterCallback)` and the like still find them."""
    for index, callback in enumerate(handler.callbacks):
        if type(callback) is PrinterCallback:
            handler.callbacks[index] = ReadablePrinter(norm)
        elif type(callback) is ProgressCallback:
            handler.callbacks[index] = ReadableProgress(norm, callback.max_str_len)
