"""The one way in which files are written that others, or a later run, take for finished."""

import os
from pathlib import Path


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write all of it or nothing, also where the process is killed or the machine stops; folders are made.

    Several processes may write the same file: each has a draft of its own beside it, `.NAME.PID.part`.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "a", "b.txt")
    >>> write_whole(path, "whole"); path.read_text(), [each.name for each in path.parent.iterdir()]
    ('whole', ['b.txt'])
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with draft.open("wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
