"""What the classes of a segmentation dataset are called: masks hold only their numbers."""

import json
import os
from collections.abc import Mapping
from typing import Any

from datasets import ClassLabel, Features
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

ID2LABEL = "id2label.json"  # beside the data, as many Hub datasets have it


def stated_names(
    features: Features, mask: str, dataset_id: str, id2label: str | Mapping | None, options: Mapping[str, Any]
) -> list[str] | None:
    """The classes by index: as given, as the column's type has them, or as `id2label.json` beside the data says.

    Args:
        id2label: a JSON file, or its content: {"0": "road", ...}.
        options: of `load_dataset`.

    Raises:
        ValueError: a file that is not there, or that does not name every index from 0 on.
    """
    if id2label is not None:
        content = id2label if isinstance(id2label, Mapping) else _read(os.path.expanduser(id2label))
        return _in_order(content, "id2label" if isinstance(id2label, Mapping) else str(id2label))
    inner = features[mask]
    while hasattr(inner, "feature"):
        inner = inner.feature
    if isinstance(inner, ClassLabel):
        return list(inner.names)
    path = _beside(dataset_id, options)
    return None if path is None else _in_order(_read(path), f"{ID2LABEL} of {dataset_id}")


def _beside(dataset_id: str, options: Mapping[str, Any]) -> str | None:
    folder = os.path.expanduser(dataset_id)
    if os.path.exists(folder):
        path = os.path.join(folder, ID2LABEL)
        return path if os.path.isfile(path) else None
    asked = {name: options[name] for name in ("revision", "token") if options.get(name)}
    try:
        return hf_hub_download(dataset_id, ID2LABEL, repo_type="dataset", **asked)
    except (EntryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, OSError):
        return None  # then the classes are numbered, which the log says


def _read(path: str) -> Any:
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        raise ValueError(f"id2label: there is no file {path}.") from None
    except ValueError as error:
        raise ValueError(f"id2label: {path} is no JSON file ({error}).") from None


def _in_order(content: Any, source: str) -> list[str]:
    try:
        named = {int(index): str(name) for index, name in content.items()}
    except (AttributeError, TypeError, ValueError):
        raise ValueError(f'{source} must map each class index to its name: {{"0": "road", "1": "car"}}.') from None
    if sorted(named) != list(range(len(named))) or len(set(named.values())) < len(named):
        raise ValueError(
            f"{source} must give each index from 0 on a name of its own; it names {sorted(named)[:5]}, ..., "
            f"{len(named)} in all."
        )
    return [named[index] for index in range(len(named))]
