import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from hf_robust_ft.evaluation.results_store import ResultsStore

SETTINGS = {"protocol": "paper", "eps": 4 / 255, "attack": {"steps": 10, "loss": "ce"}, "model": "0123abcd"}


def record_of(batch: int) -> dict:
    return {"predictions": [[batch, 1], [2, 3]], "smallest_eps": [None, 0.1 * batch], "checksum": f"é\n{batch}"}


def fill(folder, batches, rank=0, settings=SETTINGS) -> Path:
    with ResultsStore(folder, settings, rank) as store:
        for batch in batches:
            store.append(batch, record_of(batch))
    return store.path


def done(folder, rank=0, settings=SETTINGS) -> dict:
    with ResultsStore(folder, settings, rank) as store:
        return store.done


def records(*batches) -> dict:
    return {batch: record_of(batch) for batch in batches}


def names(path) -> set[str]:
    """What lies there of batches."""
    return {each.name for each in path.iterdir() if "batch" in each.name}


def files(*batches) -> set[str]:
    return {f"batch-{batch}.json" for batch in batches}


def contents(path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in path.iterdir()}


def test_round_trip(tmp_path):
    folder = tmp_path / "not" / "there" / "yet"
    with ResultsStore(folder, SETTINGS) as store:
        assert store.done == {}
        for batch in (3, 0, 17):
            store.append(batch, record_of(batch))
            assert done(folder, rank=5)[batch] == record_of(batch)  # on the disk when append returns
        assert store.done == records(3, 0, 17)
    assert done(folder) == records(3, 0, 17) and names(store.path) == files(3, 0, 17)
    assert json.loads((store.path / "settings.json").read_text()) == SETTINGS
    assert json.loads((store.path / "batch-3.json").read_text())["record"] == record_of(3)
    before = contents(store.path)
    fill(folder, [0, 5])
    assert contents(store.path).items() > before.items() and done(folder) == records(3, 0, 17, 5)


def test_records_hold_what_reading_gives_back(tmp_path):
    values = {"floats": [0.1, 1e-300, -0.0, 2.0**70], "text": "\r\u2028\ud800 ", "numpy": np.float64(0.3), "flag": True}
    with ResultsStore(tmp_path, SETTINGS) as store:
        store.append(0, values)
        values["flag"] = False
        assert store.done[0]["flag"] is True
    assert repr(done(tmp_path)) == repr(store.done)


def test_store_is_fsynced_before_append_returns(tmp_path, monkeypatch):
    sizes = []
    with ResultsStore(tmp_path, SETTINGS) as store:
        monkeypatch.setattr(os, "fsync", lambda file: sizes.append(os.fstat(file).st_size))
        store.append(0, record_of(0))
    assert sizes == [(store.path / "batch-0.json").stat().st_size]


def test_other_settings_are_another_folder(tmp_path):
    variants = [SETTINGS, SETTINGS | {"eps": 8 / 255}, SETTINGS | {"attack": {"steps": 11, "loss": "ce"}}, {}]
    paths = [fill(tmp_path, [index], settings=settings) for index, settings in enumerate(variants)]
    assert len(set(paths)) == len(variants)
    for index, settings in enumerate(variants):
        assert done(tmp_path, settings=settings) == records(index)
    reordered = dict(reversed(SETTINGS.items()))
    assert done(tmp_path, settings=reordered) == records(0)


@pytest.mark.parametrize(
    "record",
    [
        {"loss": float("nan")},
        {"loss": [float("inf")]},
        {"predictions": torch.zeros(2)},
        {"predictions": np.int64(3)},
        {"predictions": (1, 2)},
        {"by_class": {1: 2}},
        [1, 2],
    ],
)
def test_records_json_would_change_are_refused(tmp_path, record):
    with ResultsStore(tmp_path, SETTINGS) as store:
        with pytest.raises(ValueError, match=r"JSON .* record of batch 4"):
            store.append(4, record)
        store.append(4, record_of(4))
    assert done(tmp_path) == records(4)


def test_bad_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"settings.*set is not JSON"):
        ResultsStore(tmp_path / "folder", {"eps": {1}})
    assert not list(tmp_path.iterdir())
    with ResultsStore(tmp_path, SETTINGS) as store:
        for batch in (-1, True, 1.0, "1"):
            with pytest.raises(ValueError, match="whole number"):
                store.append(batch, record_of(0))
    with pytest.raises(ValueError, match="closed"):
        store.append(0, record_of(0))


def test_a_batch_does_not_change(tmp_path):
    path = fill(tmp_path, [0])
    before = contents(path)
    with ResultsStore(tmp_path, SETTINGS) as store:
        store.append(0, record_of(0))
        with pytest.raises(ValueError, match="Batch 0 is done with another record"):
            store.append(0, record_of(1))
    assert contents(path) == before


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_changed_or_cut_file_costs_its_batch_and_is_kept_aside(data):
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)  # for speed
        folder = Path(name)
        path = fill(folder, [5], rank=1)
        file = fill(folder, range(3)) / "batch-1.json"
        content = bytearray(file.read_bytes())
        position = data.draw(st.integers(0, len(content) - 1), label="position")
        if data.draw(st.booleans(), label="cut"):
            del content[position:]
        else:
            content[position] ^= data.draw(st.integers(1, 255), label="flipped bits")
        file.write_bytes(content)
        assert done(folder) == done(folder, rank=1) == records(0, 2, 5)
        assert names(path) == files(0, 1, 2, 5) and file.read_bytes() == content  # nobody did it again
        fill(folder, [0, 1])
        assert done(folder) == records(0, 1, 2, 5)
        assert names(path) == {*files(0, 1, 2, 5), "batch-1.json.corrupt"}
        assert (path / "batch-1.json.corrupt").read_bytes() == content


DAMAGE = {
    "another batch's": lambda path: (path / "batch-0.json").read_bytes(),
    "of other settings": lambda path: (fill(path.parent, [1], settings={}) / "batch-1.json").read_bytes(),
    "no JSON": lambda path: b"batch 1: 37 correct",
    "empty": lambda path: b"",
    "zeros": lambda path: bytes(1000),
    "longer": lambda path: (path / "batch-1.json").read_bytes() + b"\n",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files_are_kept_aside(tmp_path, caplog, kind):
    path = fill(tmp_path, range(2))
    file = path / "batch-1.json"
    damaged = DAMAGE[kind](path)
    for count in ("", "-2", "-3"):  # what was moved aside before stays
        file.write_bytes(damaged)
        caplog.clear()
        assert fill(tmp_path, [1]) == path and done(tmp_path) == records(0, 1)
        target = path / f"batch-1.json.corrupt{count}"
        reason = "other settings or another batch" if " " in kind and kind != "no JSON" else "checksum does not match"
        assert f"{file} is damaged (" in caplog.text and reason in caplog.text and f"to {target}" in caplog.text
        assert target.read_bytes() == damaged
    assert names(path) == files(0, 1) | {f"batch-1.json.corrupt{count}" for count in ("", "-2", "-3")}


def test_a_killed_writers_draft_is_no_batch(tmp_path, caplog):
    path = fill(tmp_path, range(2))
    (path / "batch-1.json").rename(path / ".batch-1.json.123.part")
    assert done(tmp_path) == records(0) and not caplog.records


def test_a_store_of_the_format_before_is_refused_and_left_as_it_is(tmp_path):
    older = tmp_path / "evaluation-0123456789.rank0.jsonl"
    older.write_text('{"sha256":"0123456789abcdef","format":1,"settings":{}}\n')
    with pytest.raises(ValueError, match=rf"{older.name} holds results of an older version.* give another folder"):
        ResultsStore(tmp_path, SETTINGS)
    assert list(tmp_path.iterdir()) == [older]


def test_other_numbers_of_processes_go_on(tmp_path):
    with ResultsStore(tmp_path, SETTINGS, 0) as first, ResultsStore(tmp_path, SETTINGS, 1) as second:
        for batch in (0, 2):
            first.append(batch, record_of(batch))
            second.append(batch + 1, record_of(batch + 1))
        assert first.done == records(0, 2) and second.done == records(1, 3)
    with ResultsStore(tmp_path, SETTINGS) as alone:
        assert alone.done == records(0, 1, 2, 3)
        alone.append(4, record_of(4))
    stores = [ResultsStore(tmp_path, SETTINGS, rank) for rank in range(3)]
    for batch, store in enumerate(stores, start=5):
        assert store.done == records(*range(5))
        store.append(batch, record_of(batch))
        store.close()
    assert done(tmp_path) == records(*range(8))


def test_two_runs_do_not_interleave(tmp_path):
    with ResultsStore(tmp_path, SETTINGS) as store:
        store.append(0, record_of(0))
        before = contents(store.path)
        with pytest.raises(RuntimeError, match="in use by another evaluation"):
            ResultsStore(tmp_path, SETTINGS)
        with ResultsStore(tmp_path, {}), ResultsStore(tmp_path, SETTINGS, 1):
            pass  # other settings, another rank
        assert contents(store.path).items() >= before.items()
    assert done(tmp_path) == records(0)


def test_file_systems_without_locks_are_warned_of(tmp_path, monkeypatch, caplog):
    fcntl = pytest.importorskip("fcntl")

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    fill(tmp_path, [0])
    assert "cannot be locked (No locks available)" in caplog.text and done(tmp_path) == records(0)


def test_unwritable_folders_are_an_error_before_any_compute(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=r"results cannot be kept in .*file.*give a writable folder"):
            ResultsStore(folder, SETTINGS)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folders_are_an_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="give a writable folder"):
        ResultsStore(tmp_path, SETTINGS)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_a_full_disk_or_an_interrupt_costs_one_batch(tmp_path, monkeypatch, error):
    def fails(_):
        raise error

    with ResultsStore(tmp_path, SETTINGS) as store:
        store.append(0, record_of(0))
        monkeypatch.setattr(os, "fsync", fails)
        with pytest.raises(type(error), match=getattr(error, "strerror", None)):
            store.append(1, record_of(1))
        with pytest.raises(ValueError, match="closed"):
            store.append(2, record_of(2))
    monkeypatch.undo()
    assert store.done == done(tmp_path) == records(0) and names(store.path) == files(0)


WRITER = """
import os, sys, time
from hf_robust_ft.evaluation.results_store import ResultsStore

store = ResultsStore(sys.argv[1], {"run": 1}, rank=1)
child = os.fork()  # as a DataLoader's worker
if child == 0:
    try:
        store.append(0, {"from": "child"})
    except ValueError:
        store.close()
        time.sleep(60)
    os._exit(0)
print(child, flush=True)
batch = len(store.done)
while True:
    store.append(batch, {"batch": batch, "filler": [batch] * 10_000})
    print(batch, flush=True)
    batch += 1
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and kill -9")
def test_killed_processes_lose_nothing_that_append_returned_for(tmp_path):
    path = tmp_path / "out"
    finished = 0
    for _ in range(2):
        command = [sys.executable, "-c", WRITER, str(tmp_path)]
        with path.open("w") as out, subprocess.Popen(command, stdout=out) as writer:
            try:
                wait_for(lambda: len(path.read_text().splitlines()) > 4)
                with pytest.raises(RuntimeError, match="in use by another evaluation"):
                    ResultsStore(tmp_path, {"run": 1}, rank=1)
                for _ in range(5):  # reading along is safe in mid-write
                    with ResultsStore(tmp_path, {"run": 1}, rank=0) as reader:
                        assert sorted(reader.done) == list(range(len(reader.done)))
            finally:
                writer.kill()
        child, *appended = map(int, path.read_text().split())
        try:
            with ResultsStore(tmp_path, {"run": 1}, rank=1) as store:  # the child holds no lock
                assert appended[0] == finished and len(store.done) - (appended[-1] + 1) in (0, 1)
                assert store.done == {b: {"batch": b, "filler": [b] * 10_000} for b in range(len(store.done))}
                finished = len(store.done)
        finally:
            os.kill(child, signal.SIGKILL)
    assert not list(tmp_path.rglob("*.corrupt*"))


def wait_for(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
