"""What libraries raise when a disk or quota is full, in one sentence."""

import shutil
from pathlib import Path

from safetensors import SafetensorError

# torch.save stumbles over where it stands in the file, and says no more.
TORCH_SAVE = ("inline_container", "PytorchStreamWriter", "iostream error")


def explain_storage_error(error: Exception, folder: str | Path) -> str | None:
    """Why a file could not be written and how much space is left, if an error is about that, else None."""
    if isinstance(error, RuntimeError) and any(sign in str(error) for sign in TORCH_SAVE):
        told = "torch.save could not write all of a file"
    elif isinstance(error, (OSError, SafetensorError)):
        told = " ".join(str(error).split())
    else:
        return None
    place = next(place for place in (Path(folder), *Path(folder).absolute().parents) if place.is_dir())
    return f"{told} ({shutil.disk_usage(place).free / 2**20:.0f} MB free there)."
