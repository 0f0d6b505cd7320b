"""The finished batches of a long evaluation on disk, so that a run that was killed goes on where it stopped.

One file a process, JSON Lines, only ever appended to. The first line says what was evaluated, each further one holds
a batch; the checksum is that of the line without it:

    {"sha256":"<16 hex digits>","format":1,"settings":{...}}
    {"sha256":"<16 hex digits>","batch":0,"record":{...}}
"""

import hashlib
import json
import logging
import os
import re
import weakref
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

try:
    import fcntl
except ImportError:  # Windows: nothing there keeps two runs apart
    fcntl = None

logger = logging.getLogger(__name__)

FORMAT = 1  # a file in another format counts as damaged


class ResultsStore(AbstractContextManager):
    """Records of finished batches, kept by batch index for each combination of settings.

    Process `rank` appends to `<folder>/evaluation-<hash of settings>.rank<rank>.jsonl` and reads the files of all
    ranks, so a run may go on with another number of processes. A record is used only if its checksum holds:
    - A last line without its newline (killed while writing) is dropped; the rank it belongs to cuts the file back.
    - For any other damage that rank renames the file to `<name>.corrupt` (`.corrupt-2`, ...) and starts a new one;
      rank 0 does so for ranks this run does not have. Other ranks go on without the file. Of two files that
      contradict each other about a batch, the one of higher rank counts as damaged.
    Both are logged as warnings.

    Ranks that open at different moments may see a different `done`. Which rank takes which batch must not depend on
    it, unless all ranks wait for each other between opening and the first append.

    Args:
        folder: where the files are; created if need be.
        settings: all that the results depend on, as JSON types (string keys; tuples count as lists).
        rank: of this process.
        world_size: processes in this run.

    Attributes:
        done: batch index -> record, from every rank's file of these settings.
        path: the file of this rank.

    Raises:
        ValueError: settings that are no JSON, or a rank outside 0..world_size-1.
        OSError: the folder or a file in it cannot be read or written.
        RuntimeError: another evaluation has this rank's file open (not noticed on Windows).
    """

    def __init__(self, folder: str | Path, settings: dict[str, Any], rank: int = 0, world_size: int = 1):
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in 0..world_size-1, got rank={rank} with world_size={world_size}.")
        digest = hashlib.sha256(_canonical_json(settings, "settings")).hexdigest()
        self._stem = f"evaluation-{digest[:10]}"
        self._header = _seal(_canonical_json({"format": FORMAT, "settings": settings}, "settings"))
        self.folder = Path(folder)
        self.path = self.folder / f"{self._stem}.rank{rank}.jsonl"
        self.rank, self.world_size = rank, world_size
        self.done: dict[int, dict] = {}
        self._file: FileIO | None = None
        with self._closed_on_error():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = _open_locked(self.path)
            _open_stores.add(self)
            self._load()

    def append(self, batch: int, record: dict[str, Any]) -> None:
        """Write the record of a finished batch; when this returns it is on the disk (`fsync`).

        A batch already done may come again with an equal record, which writes nothing.

        Raises:
            ValueError: a batch that is no index, a record that JSON does not give back equal (NaN, inf, tensors,
                tuples, keys that are no strings), a batch done before with another record, or a closed store.
            OSError: the write failed, e.g. on a full disk. The store is then closed; what was appended before is safe.
        """
        if self._file is None:
            raise ValueError(f"The results store of {self.path} is closed (also in processes forked from its own).")
        if not _is_index(batch):
            raise ValueError(f"A batch is a whole number of at least 0, got {batch!r}.")
        what = f"the record of batch {batch}"
        line = _canonical_json({"batch": batch, "record": record}, what)
        stored = json.loads(line)["record"]
        if not isinstance(stored, dict) or stored != record:
            raise ValueError(f"JSON would change {what}: it must be a dict with string keys and lists, not tuples.")
        if self.done.get(batch, stored) != stored:
            raise ValueError(f"Batch {batch} is done with another record: the results of a batch must not change.")
        if batch not in self.done:
            with self._closed_on_error():
                self._write_line(_seal(line))
            self.done[batch] = stored

    def close(self) -> None:
        """Let go of the file and its lock; `done` stays. Closing twice is fine."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __exit__(self, *_) -> None:
        self.close()

    @contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        """After half a line nothing may follow: one more line would make the whole file damaged."""
        try:
            yield
        except OSError as error:
            self.close()
            text = f"Evaluation results cannot be kept in {self.folder} ({error.strerror}); give a writable folder"
            raise OSError(error.errno, text, error.filename or str(self.path)) from error
        except BaseException:
            self.close()
            raise

    def _write_line(self, line: bytes) -> None:
        rest = memoryview(line + b"\n")
        while rest:
            rest = rest[self._file.write(rest) :]
        os.fsync(self._file.fileno())

    def _load(self) -> None:
        for rank, path in self._files():
            try:
                data = path.read_bytes()
                records, end = _parse(data, self._header, self.done)
            except FileNotFoundError:
                continue  # moved aside by its own rank since it was listed
            except ValueError as damage:
                self._put_aside(rank, path, damage)
                continue
            self.done.update(records)
            if rank == self.rank and end < len(data):
                self._file.truncate(end)
                torn = f"the last line is incomplete (killed while writing?), its {len(data) - end} bytes are dropped"
                logger.warning(f"{path}: {torn}; {len(records)} finished batches are kept.")
        if os.fstat(self._file.fileno()).st_size == 0:
            self._write_line(self._header)

    def _files(self) -> list[tuple[int, Path]]:
        """The files of these settings, by rank: all ranks must judge contradicting files alike."""
        pattern = re.compile(re.escape(self._stem) + r"\.rank(0|[1-9][0-9]*)\.jsonl")
        matches = [(pattern.fullmatch(path.name), path) for path in self.folder.iterdir()]
        return sorted((int(match[1]), path) for match, path in matches if match)

    def _put_aside(self, rank: int, path: Path, damage: ValueError) -> None:
        found = f"{path}, {damage} The file is damaged"
        redone = "batches that no other file holds are evaluated again."
        if rank == self.rank:
            with self._file as damaged:
                target = _move_aside(path, damaged)
                self._file = _open_locked(path)
        elif self.rank == 0 and rank >= self.world_size:
            with _open_locked(path) as damaged:
                target = _move_aside(path, damaged)
        else:
            mover = rank if rank < self.world_size else 0
            logger.warning(f"{found} and is not used: rank {mover} moves it aside, and {redone}")
            return
        logger.warning(f"{found}: it was moved to {target}, unchanged, and {redone}")


def batch_checksum(*tensors: Tensor) -> str:
    """16 hex digits of the SHA-256 of the tensors' dtypes, shapes and values: is this the batch it was before?

    The device, the memory format and whether gradients are wanted make no difference. Copies the tensors to the CPU.

    Raises:
        ValueError: no tensors, or one without data (`device="meta"`).
    """
    if not tensors:
        raise ValueError("batch_checksum needs at least one tensor: with none, any two batches would be equal.")
    digest = hashlib.sha256()
    for index, tensor in enumerate(tensors):
        _add_tensor(digest, f"tensor {index}", tensor)
    return digest.hexdigest()[:16]


def model_fingerprint(model: nn.Module) -> str:
    """16 hex digits of the SHA-256 of a model's `state_dict`: names, dtypes, shapes and values.

    The device and the memory format make no difference; a wrapper (DDP, `torch.compile`) changes the names, so give
    the bare model. What is no part of the `state_dict` does not count (configuration, code, buffers that are not
    persistent). Costs one copy to the CPU and one pass over the weights, about a second a GB.

    Raises:
        ValueError: an entry that is no tensor (`get_extra_state`), or one without data (`device="meta"`).
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(json.dumps(name).encode())
        _add_tensor(digest, f"state_dict entry {name!r}", tensor)
    return digest.hexdigest()[:16]


def _add_tensor(digest: Any, what: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor) or tensor.is_meta:
        raise ValueError(f"Only a tensor with data has a checksum; {what} is {repr(tensor)[:200]}.")
    digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    digest.update(plain.reshape(-1).view(torch.uint8).numpy())  # as bytes: numpy has no bfloat16


def _canonical_json(content: Any, what: str) -> bytes:
    """One line of ASCII, the same for equal content."""
    try:
        text = json.dumps(content, allow_nan=False, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"JSON cannot hold {what}: {error}. Give None for NaN and inf, tensors .tolist().") from None
    return text.encode("ascii")


def _seal(text: bytes) -> bytes:
    """Put the checksum of a JSON object in front, as its first key."""
    return b'{"sha256":"%s",' % hashlib.sha256(text).hexdigest()[:16].encode() + text[1:]


def _unseal(line: bytes, number: int) -> Any:
    """The content of a line, all of whose bytes the checksum covers."""
    text = b"{" + line[len(_seal(b"{")) :]
    if _seal(text) != line:
        raise ValueError(f"line {number}: the checksum does not match the line.")
    return json.loads(text)


def _parse(data: bytes, header: bytes, known: Mapping[int, dict]) -> tuple[dict[int, dict], int]:
    """The records of a file, and where its last whole line ends; a ValueError says which line is damaged, and how."""
    end = data.rfind(b"\n") + 1
    records: dict[int, dict] = {}
    for number, line in enumerate(data[:end].split(b"\n")[:-1], start=1):
        content = _unseal(line, number)
        if number == 1:
            if line != header:
                raise ValueError(f"line 1: not the header of format {FORMAT} with the settings the file's name is for.")
            continue
        batch, record = (content.get(key) for key in ("batch", "record"))
        if not _is_index(batch) or not isinstance(record, dict):
            raise ValueError(f"line {number}: not the record of a batch.")
        if records.get(batch, known.get(batch, record)) != record:
            raise ValueError(f"line {number}: another line, or a file of lower rank, has batch {batch} differently.")
        records[batch] = record
    return records, end


def _is_index(batch: Any) -> bool:
    return isinstance(batch, int) and not isinstance(batch, bool) and batch >= 0


def _move_aside(path: Path, file: FileIO) -> Path:
    """Rename a file, whose lock keeps others from looking for a free name at the same time."""
    if fcntl is None:
        file.close()  # Windows renames no open file
    count, target = 1, path.with_name(f"{path.name}.corrupt")
    while target.exists():
        count += 1
        target = path.with_name(f"{path.name}.corrupt-{count}")
    return path.rename(target)


def _open_locked(path: Path) -> FileIO:
    while True:
        with ExitStack() as unless_returned:
            file = unless_returned.enter_context(path.open("ab", buffering=0))
            _lock(file, path)
            with suppress(FileNotFoundError):  # or another file by now: moved aside between opening and locking
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    unless_returned.pop_all()
                    return file


def _lock(file: FileIO, path: Path) -> None:
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        cure = "Wait for its end, or give another folder."
        raise RuntimeError(f"{path} is in use by another evaluation with the same settings. {cure}") from None
    except OSError as error:  # some network file systems have no locks
        logger.warning(f"{path} cannot be locked ({error.strerror}): start no other evaluation with its settings.")


_open_stores: weakref.WeakSet[ResultsStore] = weakref.WeakSet()
# A DataLoader's worker outlives a killed main process by seconds: with the file open it would keep the lock.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: [store.close() for store in list(_open_stores)])
