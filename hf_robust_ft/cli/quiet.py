"""What a command leaves unsaid: progress bars in a log file, and what libraries tell that nobody can act on."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# A logger's name -> a part of what it says. Set before the libraries are imported, which takes seconds.
SILENCED = {
    # A table of a replaced head's weights, which our own line tells; any others that do not fit are an error.
    "transformers.modeling_utils": "LOAD REPORT",
    # Its settings are saved, in config.json (training/base/upstream_fixes.py).
    "transformers.models.timm_wrapper.image_processing_timm_wrapper": "The `save_pretrained` method is disabled",
    # A processor without a fast form, timm's: its values are the same.
    "transformers.models.auto.image_processing_auto": "Requested torchvision backend is not available",
    # Checkpoints within a second of each other: their steps tell them apart as well.
    "transformers.trainer_utils": "mtime may not be reliable",
}
BARS = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")  # transformers asks the Hub's client


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Warnings in a line each, without the source line; no bars of downloads and files where stderr is no terminal."""
    format_before = warnings.formatwarning
    asked = [] if sys.stderr.isatty() else [name for name in BARS if name not in os.environ]
    os.environ.update(dict.fromkeys(asked, "1"))
    for name, part in SILENCED.items():
        logger = logging.getLogger(name)
        if not any(isinstance(each, _Without) for each in logger.filters):
            logger.addFilter(_Without(part))
    warnings.formatwarning = _one_line
    try:
        yield
    finally:
        warnings.formatwarning = format_before
        for name in asked:
            os.environ.pop(name, None)


class _Without(logging.Filter):
    """Drops what holds this."""

    def __init__(self, part: str):
        super().__init__()
        self.part = part

    def filter(self, record: logging.LogRecord) -> bool:
        return self.part not in record.getMessage()


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    told = " ".join(str(message).split())
    if category is UserWarning:
        return f"warning: {told}\n"
    return f"{category.__name__}: {told} ({filename}:{lineno})\n"
