"""A run in a process of its own that is killed once it has saved a checkpoint."""

import os
from pathlib import Path

from forked import LIBRARIES_AND_OURS

from hf_robust_ft.training.base.checkpoints import newest_complete


def killed_once_saved(script: str, work: Path, log: Path, pause: float = 0.005) -> str:
    """Run a script, kill it as soon as `work` holds a complete checkpoint, and return that one."""
    file = log.with_suffix(".py")
    file.write_text(f"import torch\ntorch.set_num_threads(1)\n{script}")  # as here: sums depend on their number
    log.write_text(LIBRARIES_AND_OURS.kill_once(lambda: newest_complete(work) is not None, file, {**os.environ}, pause))
    checkpoint = newest_complete(work)
    assert checkpoint is not None, log.read_text()
    return checkpoint
