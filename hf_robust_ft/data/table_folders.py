"""A local folder of parquet, arrow or tar files: that each of them is read, in one split."""

import os
from collections import Counter
from pathlib import Path

from datasets.data_files import DataFilesDict, EmptyDatasetError, get_data_patterns

KINDS = (".arrow", ".parquet", ".tar")


def check_tables(root: str, dataset_id: str) -> None:
    """Raise where `datasets`, which finds splits by words in the files' names, would leave some out or read some twice.

    Raises:
        ValueError: it would; the files are named.
    """
    root = os.path.abspath(root)
    try:
        found = DataFilesDict.from_patterns(get_data_patterns(root), root)
    except (EmptyDatasetError, FileNotFoundError):
        return  # as loading will tell
    read = Counter(os.path.realpath(path) for files in found.values() for path in files)
    there = [path for path in Path(root).rglob("*") if path.suffix in KINDS and not _is_hidden(path, root)]
    left = [path for path in there if not read[os.path.realpath(path)]]
    twice = [path for path in there if read[os.path.realpath(path)] > 1]
    for paths, wrong in ((left, "would be in no split"), (twice, "would be read twice")):
        if paths:
            names = sorted(str(path.relative_to(root)) for path in paths)
            raise ValueError(
                f"{len(paths)} of the {len(there)} data files of {dataset_id} {wrong}, by their names: "
                f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}. Call them train-*, validation-* and "
                "test-*, in a folder data/, or move those that are not meant away."
            )


def _is_hidden(path: Path, root: str) -> bool:
    return any(part.startswith((".", "__")) for part in path.relative_to(root).parts)
