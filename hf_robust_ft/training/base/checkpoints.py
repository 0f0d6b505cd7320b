"""Checkpoints in a run's folder: which of them are complete, and how a new one gets there complete or not at all.

A checkpoint is written under `output_dir/.saving/`, flushed to the disk, and only then renamed to `checkpoint-N`. So
a process that is killed, or a disk that fills up, leaves no half of one under that name. Folders that other programs
wrote (plain `Trainer` writes in place) are judged by their files.
"""

import json
import logging
import os
import re
import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

logger = logging.getLogger(__name__)

STAGING = ".saving"  # no name that Trainer, or a search for checkpoint-*, takes for a checkpoint
REPLACED = "replaced-"
STATE = "trainer_state.json"  # the file that Trainer writes last
UNDER_WAY = "checkpoint-is-incomplete.txt"  # left by transformers' own just-in-time checkpoints
PICKLES = (".pt", ".pth", ".bin")
# Of a model, an adapter, FSDP's shards and DeepSpeed's.
WEIGHTS = ("model*.safetensors", "adapter_model.*", "pytorch_model*", "global_step*")
# Without these Trainer goes on with new ones, and says nothing. DeepSpeed keeps its own beside the weights.
RESUMED = {
    "optimizer": ("optimizer*", "global_step*"),
    "learning rate schedule": ("scheduler.pt", "global_step*"),
    "random state": ("rng_state*.pth",),
}


def fault_of(checkpoint: str | Path) -> str | None:
    """Why a checkpoint cannot be resumed from: something is missing or was cut off; None for a complete one.

    Reads headers and ends of files alone, so it costs little on large ones.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        return "it is not a folder"
    if (folder / UNDER_WAY).exists():
        return f"{UNDER_WAY} says so"
    try:
        if not isinstance(json.loads((folder / STATE).read_text(encoding="utf-8")), dict):
            return f"{STATE} holds no state"
    except FileNotFoundError:
        return f"{STATE}, which is written last, is missing"
    except ValueError:
        return f"{STATE} is cut off"
    for path in sorted(folder.rglob("*")):
        if path.is_file() and is_cut_off(path):
            return f"{path.relative_to(folder)} is cut off"
        if path.name.endswith(".index.json") and (missing := _missing_shards(path)):
            return f"{missing[0]} is missing"
        if path.suffix == ".distcp" and not (path.parent / ".metadata").is_file():
            return f"{path.parent.name}/.metadata, which is written last, is missing"
    if not any(any(folder.glob(pattern)) for pattern in WEIGHTS):
        return "it holds no weights"
    missing = [name for name, patterns in RESUMED.items() if not any(any(folder.glob(each)) for each in patterns)]
    if len(missing) == len(RESUMED):
        return "it holds the model alone, as save_only_model has it"
    return f"it lacks the {' and the '.join(missing)}" if missing else None


def is_cut_off(path: Path) -> bool:
    """Whether a file of tensors (safetensors, or a zip of torch.save) or of JSON lacks its end."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt"):  # compares what the header tells with the file's size
                return False
        except SafetensorError:
            return True
    if path.suffix in PICKLES:
        with open(path, "rb") as file:
            start = file.read(2)
        return len(start) < 2 or (start == b"PK" and not zipfile.is_zipfile(path))  # an old pickle shows no end
    if path.suffix == ".json":
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return True
    return False


def _missing_shards(index: Path) -> list[str]:
    shards = set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
    return sorted(name for name in shards if not (index.parent / name).is_file())


def checkpoints_in(output_dir: str | Path) -> list[Path]:
    """Every `checkpoint-N`, complete or not, the newest first."""
    folder = Path(output_dir)
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted((path for path in found if path.is_dir()), key=lambda path: -int(path.name.split("-")[1]))


def newest_complete(output_dir: str | Path, *, tells: bool = True) -> str | None:
    """The newest complete checkpoint, None without one.

    Args:
        tells: log a warning for each newer one that is left out, with the reason.
    """
    for path in checkpoints_in(output_dir):
        fault = fault_of(path)
        if fault is None:
            return str(path)
        if tells:
            logger.warning("%s is incomplete and is not used: %s.", path, fault)
    return None


# ---- Writing one -----------------------------------------------------------------


def flush_to_disk(folder: Path) -> None:
    """Wait until everything in a folder is on the disk, so that after a power cut a renamed folder is whole.

    Raises:
        OSError: also for a disk or quota that turns out to be full only now.
    """
    if os.name == "nt":  # opens no folders, and flushes only what is open for writing
        return
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def move_into_place(staged: Path, final: Path) -> None:
    """Rename a written checkpoint; one of the same name that was there goes only after that."""
    replaced = staged.with_name(REPLACED + final.name)
    if staged.is_dir() and final.exists():
        final.rename(replaced)
    try:
        staged.rename(final)
    except FileNotFoundError:  # done by another node that shares the disk
        if not final.is_dir():
            raise
    shutil.rmtree(replaced, ignore_errors=True)
    remove_if_empty(staged.parent)


def remove_if_empty(folder: Path) -> None:
    """Remove a folder with nothing in it."""
    try:
        folder.rmdir()
    except OSError:
        return


def clear_leftovers(output_dir: str | Path) -> None:
    """Remove what a run that was killed while saving left, and say so; put back what it was about to replace."""
    staging = Path(output_dir) / STAGING
    if not staging.is_dir():
        return
    for path in staging.iterdir():
        final = staging.parent / path.name.removeprefix(REPLACED)
        if path.name.startswith(REPLACED) and not final.exists():
            path.rename(final)
        elif not path.name.startswith(REPLACED):
            logger.warning("%s was being written when the run ended: it is incomplete and removed.", final)
    shutil.rmtree(staging, ignore_errors=True)
