"""Where results go: names of models and settings as names of files, and folders that can be written to."""

import hashlib
import os
import re
from pathlib import Path

LONGEST = 180  # bytes; file systems take 255, and endings are added


def as_file_name(text: str) -> str:
    """The text as one part of a path: without separators or control characters, not hidden, and not too long.

    A long one is cut and told from others by a checksum.

    >>> as_file_name("timm/resnet18-cub200"), as_file_name("../../etc/passwd"), as_file_name("open_clip:ViT-B-32")
    ('timm-resnet18-cub200', '-.-..-etc-passwd', 'open_clip-ViT-B-32')
    """
    name = re.sub(r"[/\\:\x00-\x1f\x7f]", "-", text)
    name = re.sub(r"^\.", "-", name) or "-"
    encoded = name.encode("utf-8", "replace")
    if len(encoded) <= LONGEST:
        return name
    checksum = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:8]
    return f"{encoded[: LONGEST - 9].decode('utf-8', 'ignore')}-{checksum}"


def check_output_dir(folder: str | Path | None) -> None:
    """Raise unless `folder` is a directory that can be written to, or could be made as one; None is no folder.

    Raises:
        ValueError: it is a file, lies below one, may not be written to, or is no path at all.
    """
    if folder is None:
        return
    if not str(folder):
        raise ValueError("output_dir='' is no path: it is empty. Name a folder.")
    path = Path(folder).expanduser()
    try:
        there = next(each for each in (path, *path.absolute().parents) if _is_there(each))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"output_dir={str(folder)[:60]!r} is no path: {reason}. Name a folder.") from None
    if not there.is_dir():
        where = "is a file" if there == path else f"lies below {there}, which is a file"
        raise ValueError(f"output_dir={str(folder)!r} {where}: name a folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"output_dir={str(folder)!r} cannot be written: {there} may not be changed.")


def _is_there(path: Path) -> bool:
    """As `os.path.lexists`, which takes a name that cannot be for one that is not there."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
