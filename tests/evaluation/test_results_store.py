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
from conftest import weights
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn

from hf_robust_ft.evaluation.results_store import (
    ResultsStore,
    _canonical_json,
    _seal,
    batch_checksum,
    model_fingerprint,
)

SETTINGS = {"protocol": "paper", "eps": 4 / 255, "attack": {"steps": 10, "loss": "ce"}, "model": "0123abcd"}


def record_of(batch: int) -> dict:
    return {"predictions": [[batch, 1], [2, 3]], "smallest_eps": [None, 0.1 * batch], "checksum": f"é\n{batch}"}


def fill(folder, batches, rank=0, world_size=1, settings=SETTINGS) -> Path:
    with ResultsStore(folder, settings, rank, world_size) as store:
        for batch in batches:
            store.append(batch, record_of(batch))
    return store.path


def done(folder, rank=0, world_size=1, settings=SETTINGS) -> dict:
    with ResultsStore(folder, settings, rank, world_size) as store:
        return store.done


def records(*batches) -> dict:
    return {batch: record_of(batch) for batch in batches}


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_round_trip(tmp_path):
    folder = tmp_path / "not" / "there" / "yet"
    with ResultsStore(folder, SETTINGS) as store:
        assert store.done == {}
        for batch in (3, 0, 7):
            store.append(batch, record_of(batch))
            assert done_by_others(folder)[batch] == record_of(batch)  # on the disk when append returns
        assert store.done == records(3, 0, 7)
    assert done(folder) == records(3, 0, 7)
    header, *lines = map(json.loads, store.path.read_text().splitlines())
    assert header["settings"] == SETTINGS and [line["batch"] for line in lines] == [3, 0, 7]
    before = store.path.read_bytes()
    fill(folder, [0, 5])
    assert store.path.read_bytes().startswith(before) and done(folder) == records(3, 0, 7, 5)


def done_by_others(folder) -> dict:
    """What rank 5 of a run sees, which leaves no file behind."""
    with ResultsStore(folder, SETTINGS, rank=5, world_size=6) as store:
        store.path.unlink()
        return store.done


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
    assert sizes == [store.path.stat().st_size]


def test_other_settings_are_another_file(tmp_path):
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
    for rank, world_size in ((-1, 1), (1, 1), (0, 0)):
        with pytest.raises(ValueError, match=f"rank={rank} with world_size={world_size}"):
            ResultsStore(tmp_path / "folder", SETTINGS, rank, world_size)
    assert names(tmp_path) == set()
    with ResultsStore(tmp_path, SETTINGS) as store:
        for batch in (-1, True, 1.0, "1"):
            with pytest.raises(ValueError, match="whole number"):
                store.append(batch, record_of(0))
    with pytest.raises(ValueError, match="closed"):
        store.append(0, record_of(0))


def test_a_batch_does_not_change(tmp_path):
    path = fill(tmp_path, [0])
    content = path.read_bytes()
    with ResultsStore(tmp_path, SETTINGS) as store:
        store.append(0, record_of(0))
        with pytest.raises(ValueError, match="Batch 0 is done with another record"):
            store.append(0, record_of(1))
    assert path.read_bytes() == content


def test_every_cut_leaves_a_valid_prefix(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)  # for speed
    path = fill(tmp_path, range(4))
    content = path.read_bytes()
    ends = [index + 1 for index, byte in enumerate(content) if byte == ord("\n")]
    for cut in [*range(ends[0] + 1), *range(ends[2], len(content) + 1)]:  # the header, and the last two lines
        path.write_bytes(content[:cut])
        caplog.clear()
        whole = sum(end <= cut for end in ends)
        with ResultsStore(tmp_path, SETTINGS) as store:
            assert store.done == records(*range(whole - 1)), cut
            assert path.read_bytes() == content[: ends[max(whole, 1) - 1]], cut
            for batch in range(4):
                store.append(batch, record_of(batch))
        assert path.read_bytes() == content and names(tmp_path) == {path.name}
        assert ("last line is incomplete" in caplog.text) == (cut not in (0, *ends)), cut


@hypothesis_settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_changed_byte_moves_the_file_aside(data):
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)  # for speed
        folder = Path(name)
        other = fill(folder, [5], rank=1, world_size=2)
        path = fill(folder, range(3))
        content = bytearray(path.read_bytes())
        position = data.draw(st.integers(0, len(content) - 1), label="position")
        content[position] ^= data.draw(st.integers(1, 255), label="flipped bits")
        path.write_bytes(content)
        if position == len(content) - 1:  # no newline at the end: a last line that does not count
            assert done(folder) == records(0, 1, 5) and names(folder) == {path.name, other.name}
            return
        assert done(folder) == records(5)
        assert names(folder) == {path.name, other.name, f"{path.name}.corrupt"}
        assert path.with_name(f"{path.name}.corrupt").read_bytes() == content
        fill(folder, [0])
        assert done(folder) == records(0, 5)


def sealed(content: dict) -> bytes:
    return _seal(_canonical_json(content, "a line")) + b"\n"


DAMAGE = {
    "no header": (1, lambda lines: lines[1:]),
    "two headers": (2, lambda lines: [lines[0], *lines]),
    "foreign header": (1, lambda lines: [sealed({"format": 1, "settings": {"eps": 0.5}}), *lines[1:]]),
    "another format": (1, lambda lines: [sealed({"format": 2, "settings": SETTINGS}), *lines[1:]]),
    "no JSON": (3, lambda lines: [*lines[:2], b"batch 1: 37 correct\n", *lines[2:]]),
    "empty line": (2, lambda lines: [lines[0], b"\n", *lines[1:]]),
    "CRLF": (1, lambda lines: [line.replace(b"\n", b"\r\n") for line in lines]),
    "zeros": (4, lambda lines: [*lines, b"\0" * 100 + b"\n"]),
    "no batch": (4, lambda lines: [*lines, sealed({"record": record_of(3)})]),
    "no record": (4, lambda lines: [*lines, sealed({"batch": 3, "record": 3})]),
    "batch twice": (4, lambda lines: [*lines, sealed({"batch": 1, "record": record_of(2)})]),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files_are_moved_aside(tmp_path, caplog, kind):
    path = fill(tmp_path, range(2))
    clean = path.read_bytes()
    line, damage = DAMAGE[kind]
    damaged = b"".join(damage(clean.splitlines(keepends=True)))
    for count in ("", "-2", "-3"):  # what was moved aside before stays
        path.write_bytes(damaged + count.encode())
        caplog.clear()
        target = path.with_name(f"{path.name}.corrupt{count}")
        with ResultsStore(tmp_path, SETTINGS) as store:
            assert store.done == {}
            with pytest.raises(RuntimeError, match="in use"):
                ResultsStore(tmp_path, SETTINGS)  # the new file is locked like the old one
            store.append(0, record_of(0))
        assert f"{path}, line {line}: " in caplog.text and f"moved to {target}" in caplog.text
        assert target.read_bytes() == damaged + count.encode()
        assert done(tmp_path) == records(0)
    assert len(names(tmp_path)) == 4


def test_equal_duplicates_are_fine(tmp_path, caplog):
    path = fill(tmp_path, range(2))
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[1])
    other = path.with_name(path.name.replace("rank0", "rank1"))
    other.write_bytes(path.read_bytes())
    assert done(tmp_path) == done(tmp_path, 1, 2) == records(0, 1) and not caplog.records
    assert names(tmp_path) == {path.name, other.name}


def test_other_numbers_of_processes_go_on(tmp_path):
    with ResultsStore(tmp_path, SETTINGS, 0, 2) as first, ResultsStore(tmp_path, SETTINGS, 1, 2) as second:
        for batch in (0, 2):
            first.append(batch, record_of(batch))
            second.append(batch + 1, record_of(batch + 1))
        assert first.done == records(0, 2) and second.done == records(1, 3)
    with ResultsStore(tmp_path, SETTINGS) as alone:
        assert alone.done == records(0, 1, 2, 3)
        alone.append(4, record_of(4))
    stores = [ResultsStore(tmp_path, SETTINGS, rank, 3) for rank in range(3)]
    for batch, store in enumerate(stores, start=5):
        assert store.done == records(*range(5))
        store.append(batch, record_of(batch))
        store.close()
    assert done(tmp_path) == records(*range(8))
    assert len(names(tmp_path)) == 3


@pytest.mark.parametrize("world_size", [1, 3])
def test_only_a_files_own_rank_touches_it(tmp_path, caplog, world_size):
    paths = [fill(tmp_path, [rank, rank + 10][rank % 2 :], rank, 3) for rank in range(3)]
    own = paths[0].read_bytes()
    torn, corrupt = paths[1].read_bytes() + b'{"sha256":"12', paths[2].read_bytes().replace(b"2", b"3", 1)
    paths[1].write_bytes(torn)
    paths[2].write_bytes(corrupt)
    aside = paths[2].with_name(f"{paths[2].name}.corrupt")
    assert done(tmp_path, 0, world_size) == records(0, 10, 11)
    assert paths[0].read_bytes() == own and paths[1].read_bytes() == torn and "incomplete" not in caplog.text
    assert f"{paths[2]}, line 1: " in caplog.text
    if world_size == 1:  # nobody else is there to do it
        assert aside.read_bytes() == corrupt and not paths[2].exists()
        return
    assert "rank 2 moves it aside" in caplog.text and paths[2].read_bytes() == corrupt
    assert done(tmp_path, 1, 3) == records(0, 10, 11) and paths[1].read_bytes() == torn[: torn.rindex(b"\n") + 1]
    assert paths[2].read_bytes() == corrupt
    assert done(tmp_path, 2, 3) == records(0, 10, 11) and aside.read_bytes() == corrupt


@pytest.mark.parametrize("opener", [0, 1])
@pytest.mark.parametrize("backwards", [False, True], ids=["sorted", "backwards"])
def test_files_that_contradict_each_other_lose_the_higher_rank(tmp_path, monkeypatch, opener, backwards):
    listing = Path.iterdir  # in no order, on many file systems
    monkeypatch.setattr(Path, "iterdir", lambda folder: iter(sorted(listing(folder), reverse=backwards)))
    fill(tmp_path, [0, 2])
    lying = tmp_path / "elsewhere"
    with ResultsStore(lying, SETTINGS, 1, 2) as store:
        store.append(1, record_of(1))
        store.append(2, record_of(3))
    store.path.rename(tmp_path / store.path.name)
    lying.rmdir()
    assert done(tmp_path, opener, 2) == records(0, 2)
    assert done(tmp_path, 1, 2) == done(tmp_path) == records(0, 2)
    assert f"{store.path.name}.corrupt" in names(tmp_path)


def test_two_runs_do_not_interleave(tmp_path):
    with ResultsStore(tmp_path, SETTINGS) as store:
        store.append(0, record_of(0))
        content = store.path.read_bytes()
        with pytest.raises(RuntimeError, match="in use by another evaluation"):
            ResultsStore(tmp_path, SETTINGS)
        with ResultsStore(tmp_path, {}), ResultsStore(tmp_path, SETTINGS, 1, 2):
            pass  # other settings, another rank
        assert store.path.read_bytes() == content
    assert done(tmp_path) == records(0)


def test_a_file_moved_away_before_it_was_locked_is_not_appended_to(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    lock, path = fcntl.flock, fill(tmp_path, [0])

    def move_then_lock(*args):
        monkeypatch.setattr(fcntl, "flock", lock)
        path.rename(tmp_path / "moved")
        return lock(*args)

    monkeypatch.setattr(fcntl, "flock", move_then_lock)
    with ResultsStore(tmp_path, SETTINGS) as store:
        store.append(1, record_of(1))
    assert done(tmp_path) == records(1) and names(tmp_path) == {path.name, "moved"}


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


class FullDisk:
    """A file that takes 10 bytes more, then none."""

    def __init__(self, file):
        self.file, self.left = file, 10

    def write(self, data):
        if not self.left:
            raise OSError(errno.ENOSPC, "No space left on device")
        count, self.left = self.file.write(data[: self.left]), 0
        return count

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_a_full_disk_closes_the_store_and_costs_one_batch(tmp_path):
    path = fill(tmp_path, [0])
    store = ResultsStore(tmp_path, SETTINGS)
    store._file = FullDisk(store._file)
    with pytest.raises(OSError, match="No space left on device"):
        store.append(1, record_of(1))
    with pytest.raises(ValueError, match="closed"):
        store.append(2, record_of(2))
    assert store.done == records(0)
    assert not path.read_bytes().endswith(b"\n")
    assert done(tmp_path) == records(0) and names(tmp_path) == {path.name}


def test_an_interrupted_append_closes_the_store(tmp_path, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    with ResultsStore(tmp_path, SETTINGS) as store, monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.append(0, record_of(0))
        with pytest.raises(ValueError, match="closed"):
            store.append(1, record_of(1))
    assert done(tmp_path) == records(0)


WRITER = """
import os, sys, time
from hf_robust_ft.evaluation.results_store import ResultsStore

store = ResultsStore(sys.argv[1], {"run": 1}, rank=1, world_size=2)
child = os.fork()  # as a DataLoader's worker
if child == 0:
    try:
        store.append(0, {"from": "child"})
    except ValueError:
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
                for _ in range(5):  # reading along is safe in mid-write
                    with ResultsStore(tmp_path, {"run": 1}, rank=0, world_size=2) as reader:
                        assert sorted(reader.done) == list(range(len(reader.done)))
            finally:
                writer.kill()
        child, *appended = map(int, path.read_text().split())
        try:
            with ResultsStore(tmp_path, {"run": 1}, rank=1, world_size=2) as store:  # the child holds no lock
                assert appended[0] == finished and len(store.done) - (appended[-1] + 1) in (0, 1)
                assert store.done == {b: {"batch": b, "filler": [b] * 10_000} for b in range(len(store.done))}
                finished = len(store.done)
        finally:
            os.kill(child, signal.SIGKILL)
    assert not [name for name in names(tmp_path) if "corrupt" in name]


def wait_for(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_batch_checksum_sees_value_shape_dtype_and_order():
    pixels, labels = torch.rand(4, 3, 5, 5), torch.arange(4)
    changed = pixels.clone()
    changed[3, 2, 4, 4] = torch.nextafter(changed[3, 2, 4, 4], torch.tensor(2.0))
    different = [
        (pixels, labels),
        (labels, pixels),
        (pixels,),
        (changed, labels),
        (pixels.flatten(1), labels),
        (pixels, labels.int()),
        (pixels, labels.view(torch.float64)),
        (pixels[:2], pixels[2:], labels),
        (pixels.bfloat16(), labels),
        (torch.zeros(0),),
        (torch.zeros(0, 3),),
        (torch.tensor(0.0),),
    ]
    sums = [batch_checksum(*tensors) for tensors in different]
    assert len(set(sums)) == len(different) and all(len(value) == 16 for value in sums)


def test_batch_checksum_ignores_strides_and_gradients():
    pixels = torch.rand(4, 3, 5, 6)
    expected = batch_checksum(pixels)
    for same in (
        pixels.clone(),
        pixels.contiguous(memory_format=torch.channels_last),
        pixels.mT.contiguous().mT,
        torch.stack([pixels, pixels], -1)[..., 0],
        pixels.clone().requires_grad_(),
        -torch._neg_view(pixels),
    ):
        assert batch_checksum(same) == expected
    assert batch_checksum(torch.ones(1, 2).expand(3, 2)) == batch_checksum(torch.ones(3, 2))
    assert batch_checksum(torch._neg_view(pixels)) == batch_checksum(-pixels) != expected
    complex_pixels = torch.complex(pixels, pixels)
    assert batch_checksum(complex_pixels.conj()) == batch_checksum(complex_pixels.conj().resolve_conj())


def test_tensors_without_data_have_no_checksum():
    with pytest.raises(ValueError, match=r"tensor 1 is tensor\(\.\.\., device='meta'"):
        batch_checksum(torch.ones(1), torch.ones(2, device="meta"))
    with pytest.raises(ValueError, match="at least one"):
        batch_checksum()
    with torch.device("meta"), pytest.raises(ValueError, match="entry 'bias'"):
        model_fingerprint(nn.Linear(2, 3))


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_fingerprint_sees_every_entry(make_model, kind):
    model = make_model(kind)
    expected = model_fingerprint(model)
    assert model_fingerprint(make_model(kind)) == expected != model_fingerprint(make_model(kind, seed=1))
    for name, tensor in model.state_dict().items():  # shares memory with the model, buffers included
        flat = tensor.view(-1)
        old = flat[-1].clone()
        flat[-1] = old + 1
        assert model_fingerprint(model) != expected, name
        flat[-1] = old
    assert model_fingerprint(model) == expected


def test_fingerprint_ignores_memory_format_and_mode_but_not_dtype(make_model):
    model = make_model("resnet")
    before, expected = weights(model), model_fingerprint(model)
    model.to(memory_format=torch.channels_last).train()
    assert any(not tensor.is_contiguous() for tensor in model.state_dict().values())
    assert model_fingerprint(model) == expected
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    rounded = model.bfloat16()
    assert model_fingerprint(rounded) not in (expected, model_fingerprint(make_model("resnet").half()))
    assert model_fingerprint(rounded) == model_fingerprint(make_model("resnet").bfloat16())
    assert model_fingerprint(rounded) != model_fingerprint(rounded.float())  # equal values


def test_fingerprint_of_tied_empty_and_unusual_modules():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.load_state_dict(first.state_dict())
    tied, copied = nn.Sequential(first, first), nn.Sequential(first, second)
    assert model_fingerprint(tied) == model_fingerprint(copied) != model_fingerprint(nn.Sequential(first))
    by_name = [model_fingerprint(nn.ModuleDict({name: first})) for name in "ab"]
    assert by_name[0] != by_name[1]
    assert model_fingerprint(nn.Identity()) == model_fingerprint(nn.Sequential(nn.ReLU())) != model_fingerprint(first)

    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"scale": 2}

    with pytest.raises(ValueError, match=r"'_extra_state' is \{'scale': 2\}"):
        model_fingerprint(Extra(2, 2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_checksums_are_those_of_the_cpu_on_a_gpu(make_model):
    model, pixels = make_model("resnet"), torch.rand(2, 3, 4, 4)
    on_cpu = model_fingerprint(model), batch_checksum(pixels)
    assert (model_fingerprint(model.cuda()), batch_checksum(pixels.cuda())) == on_cpu
