"""Where images come from (embedded, a local path, the Hub), and what to do when they do not come."""

import errno
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset, DatasetDict, IterableDataset, load_dataset
from datasets.data_files import EmptyDatasetError
from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError, DatasetNotFoundError
from datasets.utils.info_utils import NonMatchingSplitsSizesError
from huggingface_hub import DatasetCard, constants
from huggingface_hub.errors import GatedRepoError
from huggingface_hub.file_download import repo_folder_name

from hf_robust_ft.data.digits import load_digits_dataset
from hf_robust_ft.data.image_folders import find_image_files
from hf_robust_ft.data.specs import SPECS, nearest_names
from hf_robust_ft.data.table_folders import check_tables
from hf_robust_ft.provenance.choices import did_you_mean
from hf_robust_ft.provenance.downloads import disk_full, error_chain, verify_download
from hf_robust_ft.provenance.source_names import HubAnswer, ask_hub, nothing_here

EMBEDDED_DATASETS = {"digits": load_digits_dataset}

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
            f"{nothing_here(dataset_id)} {dataset_id} is not a folder or parquet file. Give one, with "
            "train/<class>/<image>, or a Hub dataset id."
        )
    if os.path.isfile(os.path.join(path, "dataset_dict.json")):
        if load_options:
            raise ValueError(f"{dataset_id} was written by save_to_disk and takes no {sorted(load_options)}.")
        return dict(DatasetDict.load_from_disk(path))
    if os.path.isdir(path):
        return _load_folder(path, dataset_id, load_options)
    _check_on_hub(dataset_id, load_options)
    splits = _load(path, dataset_id, load_options)
    if not load_options.get("streaming"):
        verify_download(
            dataset_id, repo_type="dataset", revision=load_options.get("revision"), token=load_options.get("token")
        )
    return splits


def _check_on_hub(dataset_id: str, load_options: dict[str, Any]) -> None:
    """Raise where the Hub lacks a dataset, or does not answer and nothing of it is cached."""
    answer = ask_hub(dataset_id, "dataset", load_options.get("token"))
    if answer is HubAnswer.ABSENT:
        raise _absent(dataset_id, "The Hub has no dataset of that name that your token may read")
    prepared = Path(load_options.get("cache_dir") or datasets.config.HF_DATASETS_CACHE) / dataset_id.replace("/", "___")
    downloaded = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=dataset_id, repo_type="dataset")
    if answer is HubAnswer.SILENT and not prepared.is_dir() and not downloaded.is_dir():
        raise _unanswered(dataset_id, "no connection")


def _load_folder(path: str, dataset_id: str, load_options: dict[str, Any]) -> dict[str, Dataset | IterableDataset]:
    """A local folder of images, or of tables of them."""
    if not os.path.isabs(dataset_id) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", dataset_id):
        logger.warning("%s is read from the folder of that name here, not from the Hub.", dataset_id)
    found = None
    if "data_files" not in load_options and not _has_configurations(path):  # else their author says what is what
        folder = os.path.join(path, load_options.get("data_dir") or "")
        found = find_image_files(folder, dataset_id)
        if found is None:
            check_tables(folder, dataset_id)
    if found is None:
        return _load(path, dataset_id, load_options)
    options = {name: value for name, value in load_options.items() if name != "data_dir"}
    splits = _load(path, dataset_id, options | found.load_options())
    if not load_options.get("streaming"):
        found.check_all_read(splits)
    return splits


def _has_configurations(path: str) -> bool:
    """Whether the folder's dataset card maps files to splits."""
    card = os.path.join(path, "README.md")
    return os.path.isfile(card) and bool(DatasetCard.load(card, ignore_metadata_errors=True).data.get("configs"))


def loaded_commit(dataset: Dataset | IterableDataset) -> str | None:
    """The Hub commit that a dataset was loaded from, as far as its cache tells."""
    files = [entry["filename"] for entry in getattr(dataset, "cache_files", [])]
    found = {match.group(1) for name in files for match in re.finditer(r"[/\\]([0-9a-f]{40})[/\\]", name)}
    return found.pop() if len(found) == 1 else None


def common_commit(splits: Mapping[str, Dataset | IterableDataset]) -> dict[str, str]:
    """`dataset_commit`, where the splits were all loaded from one."""
    commits = {loaded_commit(split) for split in splits.values()}
    commit = commits.pop() if len(commits) == 1 else None
    return {"dataset_commit": commit} if commit else {}


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
    except (EmptyDatasetError, DataFilesNotFoundError):
        raise ValueError(
            f"{dataset_id} holds no files of images that could be read. Expected {dataset_id}/train/CLASS/*.jpg (or "
            "png, ...), CLASS/*.jpg without a split, or parquet files."
        ) from None
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
    if isinstance(error, ConnectionError):
        return _unanswered(dataset_id, str(error))
    return _absent(dataset_id, str(error).rstrip("."))


def _unanswered(dataset_id: str, reason: str) -> ConnectionError:
    return ConnectionError(
        f"{nothing_here(dataset_id)} {dataset_id} is not cached, and the Hub does not answer: {reason}."
        f"{_known(dataset_id)}"
    )


def _absent(dataset_id: str, reason: str) -> ValueError:
    return ValueError(
        f"{nothing_here(dataset_id)} {reason}.{_known(dataset_id)} Otherwise give a Hub id (owner/name) that exists "
        "and that your token may read, or a local folder."
    )


def _known(dataset_id: str) -> str:
    near = nearest_names(dataset_id) if "/" not in dataset_id else []
    return did_you_mean(near) or f" Known names: {', '.join((*SPECS, 'digits'))}."
