"""Which weights a report was measured on: checksums of a checkpoint's files."""

import hashlib
from pathlib import Path

WEIGHT_FILES = "model*.safetensors"  # one file, or shards


def hash_file(path: str | Path) -> str:
    """sha256 of a file, in hexadecimal digits, as the Hub lists it for large files."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_weight_files(folder: str | Path) -> dict[str, str]:
    """sha256 of a checkpoint's safetensors files by name; empty where there is none."""
    return {path.name: hash_file(path) for path in sorted(Path(folder).glob(WEIGHT_FILES))}
