"""Where images come from (embedded, a local path, the Hub), and what to do when they do not come."""

import errno
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset, DatasetDict, IterableDataset, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.utils.info_utils import NonMatchingSplitsSizesError
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError

from hf_robust_ft.data.digits import load_digits_dataset
from hf_robust_ft.data.specs import SPECS, nearest_names
from hf_robust_ft.downloads import disk_full, error_chain, verify_download

EMBEDDED_DATASETS = {"digits": load_digits_dataset}
_NO_IMAGES = {".csv", ".db", ".ini", ".json", ".jsonl", ".md", ".parquet", ".txt", ".xml"}  # beside images, on purpose

logger = logging.getLogger(__name__)


def load_source(dataset_id: str, load_options: dict[str, Any]) -> dict[str, Dataset | IterableDataset]:
    """The splits as their source has them.

    Args:
        dataset_id: an embedded dataset, a local folder or parquet file, or a Hub id.
        load_options: of `datasets.load_dataset`.

    Raises:
        ValueError: there is no such dataset, it may not be read, or it came incomplete; with what to do.
        OSError: the disk is full, or the Hub does not answer.
    """
    if dataset_id in EMBEDDED_DATASETS:
        if load_options:
            raise ValueError(f"{dataset_id} is embedded and takes no {sorted(load_options)}.")
        return {"train": EMBEDDED_DATASETS[dataset_id]()}
    looks_like_path = os.path.isabs(dataset_id) or dataset_id.startswith((".", "~")) or dataset_id.endswith(".parquet")
    path = os.path.expanduser(dataset_id)
    if os.path.exists(path) and load_options.get("revision"):
        raise ValueError(f"{dataset_id} lies on this machine and has no revision {load_options['revision']!r}.")
    if os.path.isfile(path):
        if not path.endswith(".parquet"):
            raise ValueError(f"{dataset_id} is a file, but not a .parquet file. Give one, or a folder of images.")
        return _load("parquet", dataset_id, {"data_files": {"train": path}, **load_options})
    if looks_like_path and not os.path.isdir(path):
        raise ValueError(
            f"{dataset_id} is not a folder or parquet file. Give one, with train/<class>/<image>, or a Hub dataset id."
        )
    if os.path.isfile(os.path.join(path, "dataset_dict.json")):
        if load_options:
            raise ValueError(f"{dataset_id} was written by save_to_disk and takes no {sorted(load_options)}.")
        return dict(DatasetDict.load_from_disk(path))
    splits = _load(path, dataset_id, load_options)
    if os.path.isdir(path):
        _warn_of_unread_files(path, dataset_id)
    if not os.path.isdir(path) and not load_options.get("streaming"):
        verify_download(
            dataset_id, repo_type="dataset", revision=load_options.get("revision"), token=load_options.get("token")
        )
    return splits


def _warn_of_unread_files(path: str, dataset_id: str) -> None:
    """`datasets` passes over what it knows no image by its ending, and over broken links, without a word."""
    unread: Counter[str] = Counter()
    for folder, _, files in os.walk(path):
        endings = {name: os.path.splitext(name)[1].lower() for name in files if not name.startswith(".")}
        if set(endings.values()).isdisjoint(ImageFolder.EXTENSIONS):
            continue
        for name, ending in endings.items():
            if not os.path.exists(os.path.join(folder, name)):
                unread["broken links"] += 1
            elif ending not in ImageFolder.EXTENSIONS and ending not in _NO_IMAGES:
                unread[ending or "no ending"] += 1
    if unread:
        counts = ", ".join(f"{ending} ({count})" for ending, count in unread.most_common(8))
        logger.warning(
            "%s: %d files beside the images are not read: %s. Convert or rename those that are images.",
            dataset_id, unread.total(), counts,
        )  # fmt: skip


def loaded_commit(dataset: Dataset | IterableDataset) -> str | None:
    """The Hub commit that a dataset was loaded from, as far as its cache tells."""
    files = [entry["filename"] for entry in getattr(dataset, "cache_files", [])]
    found = {match.group(1) for name in files for match in re.finditer(r"[/\\]([0-9a-f]{40})[/\\]", name)}
    return found.pop() if len(found) == 1 else None


def loaded_facts(dataset: Any) -> dict[str, Any]:
    """`dataset`, `dataset_on_hub`, `dataset_commit`, `dataset_config` of a dataset from the Hub; of any other, nothing.

    The cache of `datasets` tells the commit and a name in small letters; that of the Hub's client has its real one.
    """
    commit = loaded_commit(dataset)
    places = list(Path(constants.HF_HUB_CACHE).glob(f"datasets--*/snapshots/{commit}")) if commit else []
    if len(places) != 1:
        return {}
    name = places[0].parts[-3].removeprefix("datasets--").replace("--", "/")
    facts = {"dataset": name, "dataset_on_hub": True, "dataset_commit": commit}
    configuration = getattr(getattr(dataset, "info", None), "config_name", None)
    return facts | ({"dataset_config": configuration} if configuration not in (None, "default") else {})


@contextmanager
def disk_errors_explained(dataset_id: str, cache_dir: str | None = None) -> Iterator[None]:
    """A full disk, wherever in `datasets` it is met, ends in a message that names the folders and the ways out."""
    try:
        yield
    except Exception as error:
        full = disk_full(error)
        if full is None:
            raise
        where = f" (while writing {full.filename})" if getattr(full, "filename", None) else ""
        raise OSError(
            errno.ENOSPC,
            f"The disk is full: {dataset_id} could not be cached{where}. Downloads go to {constants.HF_HUB_CACHE}, "
            f"prepared data to {cache_dir or datasets.config.HF_DATASETS_CACHE}. Free some space, point HF_HOME at a "
            "larger disk (or pass cache_dir), or load with streaming=True, which stores nothing.",
        ) from error


def _load(path: str, dataset_id: str, load_options: dict[str, Any]) -> dict[str, Dataset | IterableDataset]:
    try:
        return dict(load_dataset(path, **load_options))
    except NonMatchingSplitsSizesError as error:
        raise ValueError(
            f"{dataset_id} came with another number of images than it declares: {error}. Load it again with "
            "download_mode='force_redownload'."
        ) from error
    except (DatasetNotFoundError, GatedRepoError, ConnectionError, DatasetGenerationError, pa.ArrowInvalid) as error:
        if disk_full(error):
            raise
        raise _explained(error, dataset_id) from error


def _explained(error: Exception, dataset_id: str) -> Exception:
    causes = list(error_chain(error))
    # Behind its listing of files `datasets` keeps only the words.
    if any(isinstance(cause, GatedRepoError) for cause in causes) or "is a gated dataset" in str(error):
        return ValueError(
            f"{dataset_id} is gated: ask for access on https://huggingface.co/datasets/{dataset_id}, then log in "
            "(hf auth login), set HF_TOKEN or pass token=."
        )
    if isinstance(error, (DatasetGenerationError, pa.ArrowInvalid)):
        return ValueError(
            f"{dataset_id} could not be read: {causes[-1]}. If a download was cut off, load it again with "
            "download_mode='force_redownload'."
        )
    near = nearest_names(dataset_id) if "/" not in dataset_id else []
    known = f" Did you mean {' or '.join(near)}?" if near else f" Known names: {', '.join((*SPECS, 'digits'))}."
    if isinstance(error, ConnectionError):
        return ConnectionError(f"{dataset_id} is not cached, and the Hub does not answer: {error}.{known}")
    return ValueError(
        f"{str(error).rstrip('.')}.{known} Otherwise give a Hub id (owner/name) that exists and that your token may "
        "read, or a local folder."
    )
