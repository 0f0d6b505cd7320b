"""The finished batches of a long evaluation on disk, so that a run that was killed goes on where it stopped.

A folder for each combination of settings, with one file a batch, which is there whole or not at all:

    evaluation-<hash of settings>/settings.json
    evaluation-<hash of settings>/batch-0.json    {"sha256":"<of the rest>","batch":0,"record":{...},"settings":"..."}
"""

import errno
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hf_robust_ft.provenance.atomic import write_whole

logger = logging.getLogger(__name__)

BATCHES = "finished_batches"  # of `evaluate`, in its output_dir
OLDER = "evaluation-*.rank*.jsonl"  # as stores were written before: one file a process
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # some network file systems


class ResultsStore(AbstractContextManager):
    """Records of finished batches, kept by batch index for each combination of settings.

    Whichever process finished a batch, all find it, so a run may go on with another number of processes. A record is
    used only if its checksum holds. A damaged file is named in a warning and left as it is, until its batch is done
    again: then it is renamed to `<name>.corrupt` (`.corrupt-2`, ...).

    Args:
        folder: where the results are; created if need be.
        settings: all that the results depend on, as JSON types (string keys; tuples count as lists).
        rank: of this process; no other one may append the same batches.

    Attributes:
        done: batch index -> record, of these settings.
        path: the folder of these settings.

    Raises:
        ValueError: settings that are no JSON, or a folder with results of an older version.
        OSError: the folder or a file in it cannot be read or written.
        RuntimeError: another evaluation is at these settings under this rank.
    """

    def __init__(self, folder: str | Path, settings: dict[str, Any], rank: int = 0):
        text = _canonical_json(settings, "settings")
        self._settings = hashlib.sha256(text).hexdigest()
        self.folder = Path(folder)
        self.path = self.folder / f"evaluation-{self._settings[:10]}"
        self.done: dict[int, dict] = {}
        self._damaged: set[Path] = set()
        self._lock = FileLock(self.path / f"rank{rank}.lock", timeout=0)
        self._owner: int | None = os.getpid()  # in a fork of it the store is closed
        with self._explained():
            if older := sorted(self.folder.glob(OLDER)):
                raise ValueError(
                    f"{older[0]} holds results of an older version, which this one does not go on with: finish that "
                    "evaluation with the version it was begun with, move the file away, or give another folder."
                )
            self.path.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            if rank == 0:
                write_whole(self.path / "settings.json", text)
            for path in sorted(self.path.glob("batch-*.json")):
                self._read(path)

    def append(self, batch: int, record: dict[str, Any]) -> None:
        """Write the record of a finished batch; when this returns it is on the disk (`fsync`).

        A batch already done may come again with an equal record, which writes nothing.

        Raises:
            ValueError: a batch that is no index, a record that JSON does not give back equal (NaN, inf, tensors,
                tuples, keys that are no strings), a batch done before with another record, or a closed store.
            OSError: the write failed, e.g. on a full disk. The store is then closed; what was appended before is safe.
        """
        if self._owner != os.getpid():
            raise ValueError(f"The results store {self.path} is closed (also in processes forked from its own).")
        if not isinstance(batch, int) or isinstance(batch, bool) or batch < 0:
            raise ValueError(f"A batch is a whole number of at least 0, got {batch!r}.")
        what = f"the record of batch {batch}"
        text = _canonical_json({"batch": batch, "record": record, "settings": self._settings}, what)
        stored = json.loads(text)["record"]
        if not isinstance(stored, dict) or stored != record:
            raise ValueError(f"JSON would change {what}: it must be a dict with string keys and lists, not tuples.")
        if self.done.get(batch, stored) != stored:
            raise ValueError(f"Batch {batch} is done with another record: the results of a batch must not change.")
        if batch in self.done:
            return
        with self._explained():
            if (path := self.path / f"batch-{batch}.json") in self._damaged:
                _put_aside(path)
            write_whole(path, _seal(text))
        self.done[batch] = stored

    def close(self) -> None:
        """Let go of the lock; `done` stays. Closing twice is fine."""
        if self._owner == os.getpid():  # a fork must not release what its parent holds
            self._lock.release()
        self._owner = None

    def __exit__(self, *_) -> None:
        self.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.close()
            text = f"Evaluation results cannot be kept in {self.folder} ({error.strerror}); give a writable folder"
            raise OSError(error.errno, text, error.filename or str(self.path)) from error
        except BaseException:
            self.close()
            raise

    def _take_lock(self) -> None:
        try:
            self._lock.acquire()
        except Timeout:
            cure = "Wait for its end, or give another folder."
            raise RuntimeError(f"{self.path} is in use by another evaluation with the same settings. {cure}") from None
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            told = f"{self.path} cannot be locked ({error.strerror})"
            logger.warning(f"{told}: start no other evaluation with its settings.")

    def _read(self, path: Path) -> None:
        """Take over what a batch's file holds, if it is as it was written."""
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return  # renamed by the process that has its batch since it was listed
        content = json.loads(text) if _seal(text := b"{" + data[len(_seal(b"{")) :]) == data else {}
        if content.get("settings") == self._settings and path.name == f"batch-{content.get('batch')}.json":
            self.done[content["batch"]] = content["record"]
            return
        self._damaged.add(path)
        found = "belongs to other settings or another batch" if content else "its checksum does not match"
        logger.warning(f"{path} is damaged ({found}): its batch is evaluated again, and the file then kept aside.")


def _canonical_json(content: Any, what: str) -> bytes:
    """One line of ASCII, the same for equal content."""
    try:
        text = json.dumps(content, allow_nan=False, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"JSON cannot hold {what}: {error}. Give None for NaN and inf, tensors .tolist().") from None
    return text.encode("ascii")


def _seal(text: bytes) -> bytes:
    """Put the checksum of a JSON object in front, as its first key."""
    return b'{"sha256":"%s",' % hashlib.sha256(text).hexdigest().encode() + text[1:]


def _put_aside(path: Path) -> None:
    count, target = 1, path.with_name(f"{path.name}.corrupt")
    while target.exists():
        count += 1
        target = path.with_name(f"{path.name}.corrupt-{count}")
    path.rename(target)
    logger.warning(f"{path} was moved to {target}, unchanged.")
