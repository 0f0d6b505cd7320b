"""A run in a process of its own that is killed once it has saved a checkpoint."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from hf_robust_ft.training.base.checkpoints import newest_complete


def killed_once_saved(script: str, work: Path, log: Path, pause: float = 0.005) -> str:
    """Run a script, kill it as soon as `work` holds a complete checkpoint, and return that one."""
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # as here: sums depend on their number
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, "-c", script], stdout=file, stderr=file, env=one_thread)
        deadline = time.monotonic() + 120
        while newest_complete(work) is None and process.poll() is None and time.monotonic() < deadline:
            time.sleep(pause)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    checkpoint = newest_complete(work)
    assert checkpoint is not None, log.read_text()
    return checkpoint
