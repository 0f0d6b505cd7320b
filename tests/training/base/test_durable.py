"""Runs survive kills, full disks and dead processes: what is on the disk is complete, and resuming changes no bit."""

import json
import os
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from conftest import assert_same_weights, run_script
from transformers import TrainerCallback

from hf_robust_ft.training.base import durable as durable_trainer
from hf_robust_ft.training.base.checkpoints import STAGING, checkpoints_in, fault_of

SAVING = {"save_strategy": "steps", "save_steps": 3, "num_train_epochs": 2, "save_total_limit": 1, "robust_eval": "no"}


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


# ---- Kills ---------------------------------------------------------------------------

KILLED = """
import json, os, signal
from pathlib import Path
from transformers import TrainerCallback
from hf_robust_ft.training.base import checkpoints
from hf_robust_ft.training.base import durable as durable_trainer
from hf_robust_ft.benchmarks import kill_and_resume
from hf_robust_ft.benchmarks.kill_and_resume import Runs, build, differences, train

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

class DieAt(TrainerCallback):
    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == 7:
            die()

def arm(moment):
    if moment == "mid-step":
        kill_and_resume.build = lambda folder, schedule, watchers: build(
            folder, schedule, lambda before: [*watchers(before), DieAt()]
        )
    elif moment == "half a file":
        save = torch.save
        def half(content, path):
            save(content, path)
            if "checkpoint-6" in str(path) and "optimizer" in str(path):
                os.truncate(path, os.path.getsize(path) // 2)
                die()
        torch.save = half
    elif moment == "before the rename":
        flush = checkpoints.flush_to_disk
        checkpoints.flush_to_disk = lambda staged: die() if staged.name == "checkpoint-6" else flush(staged)
    else:  # after the rename, before the older one is deleted
        rotate = durable_trainer.rotate_checkpoints
        def at_two(folder, *args, **kwargs):
            if (Path(folder) / "checkpoint-6").exists():
                die()
            rotate(folder, *args, **kwargs)
        durable_trainer.rotate_checkpoints = at_two

def killed(folder, schedule, steps_done, moment):
    arm(moment)
    train(folder, schedule, steps_done)

build_whole = build
kill_and_resume.build = lambda *args: build_whole(*args, num_train_epochs=3)
build = kill_and_resume.build
runs, found = Runs(folder, seed=0), {}
for schedule, moment in [("auto", "mid-step"), ("hinge", "half a file"), ("per_sample", "before the rename"),
                         ("trades", "after the rename")]:
    place = folder / moment
    process = runs.context.Process(target=killed, args=(place, schedule, runs.context.Value("i", 0), moment))
    process.start()
    process.join()
    seen = dict(exitcode=process.exitcode, checkpoints=sorted(path.name for path in place.glob("checkpoint-*")),
                half=sorted(path.name for path in place.glob(".saving/*")))
    found[moment] = seen | dict(differences=differences(runs.whole[schedule], runs._finish(place, schedule)),
                                told=(place.with_suffix(".log")).read_text())
(folder / "found.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    done = run_script(KILLED, folder)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize(
    ("moment", "complete", "half"),
    [
        ("mid-step", ["checkpoint-6"], []),
        ("half a file", ["checkpoint-3"], ["checkpoint-6"]),
        ("before the rename", ["checkpoint-3"], ["checkpoint-6"]),
        ("after the rename", ["checkpoint-3", "checkpoint-6"], []),
    ],
)
def test_killed_and_resumed_equals_uninterrupted(killed, moment, complete, half):
    found = killed[moment]
    assert found["exitcode"] == -signal.SIGKILL
    assert (found["checkpoints"], found["half"]) == (complete, half)
    assert found["differences"] == []
    assert ("checkpoint-6 was being written when the run ended" in found["told"]) == bool(half)


# ---- Disks ---------------------------------------------------------------------------


class AtStep(TrainerCallback):
    def __init__(self, step, do):
        self.step, self.do = step, do

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.do()


@pytest.fixture
def file_limit():
    """Sets the most bytes that a file may have, which the system enforces as it does a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("fails", ["model.safetensors", "optimizer.pt", "averaged_weights.safetensors"])
def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    make_trainer, make_model, tmp_path, file_limit, fails
):
    changes = {"ema_decay": 0.9} if fails.startswith("averaged") else {}
    whole = make_trainer(make_model("vit", dropout=0.1), **SAVING | changes, output_dir=str(tmp_path / "whole"))
    whole.train()
    size = (tmp_path / "whole" / "checkpoint-12" / "model.safetensors").stat().st_size
    limit = {"model.safetensors": size - 1, "optimizer.pt": size + 1}.get(fails, size - 1)
    cut = make_trainer(
        make_model("vit", dropout=0.1), **SAVING | changes, callbacks=[AtStep(6, lambda: file_limit(limit))]
    )
    with pytest.raises(
        OSError, match=r"(?s)checkpoint-6 could not be written to .*MB free.*checkpoint is .*-3"
    ) as stop:
        cut.train()
    file_limit(resource.RLIM_INFINITY)
    assert "\n" not in str(stop.value) and "no part of it is left" in str(stop.value)
    assert names(tmp_path / "out") == ["checkpoint-3"] and fault_of(tmp_path / "out" / "checkpoint-3") is None
    resumed = make_trainer(make_model("vit", seed=5, dropout=0.1), **SAVING | changes)
    resumed.train(resume_from_checkpoint=True)
    assert_same_weights(resumed.model, whole.model)


def test_a_disk_that_is_really_full(make_trainer, make_model, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a small disk")
    try:
        fill = AtStep(4, lambda: (disk / "other").write_bytes(bytes(os.statvfs(disk).f_bavail * 4096 - 100_000)))
        trainer = make_trainer(make_model(), **SAVING, output_dir=str(disk / "run"), callbacks=[fill])
        with pytest.raises(OSError, match=r"checkpoint-6 could not be written .*Make room.*checkpoint-3"):
            trainer.train()
        assert names(disk / "run") == ["checkpoint-3"]
        (disk / "other").unlink()
        resumed = make_trainer(make_model(seed=5), **SAVING, output_dir=str(disk / "run"))
        resumed.train(resume_from_checkpoint=True)
        (disk / "other").write_bytes(bytes(os.statvfs(disk).f_bavail * 4096 - 8192))
        with pytest.raises(OSError, match=r"The model could not be written .*checkpoint-12"):
            resumed.save_model()
        assert not (disk / "run" / "model.safetensors").exists()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)  # the error still holds a file of it open


def test_older_checkpoints_go_only_when_the_new_one_is_complete(make_trainer, make_model, monkeypatch):
    seen, rotate = [], durable_trainer.rotate_checkpoints

    def looked_at(folder, *args, **kwargs):
        seen.append([(path.name, fault_of(path)) for path in checkpoints_in(folder)])
        rotate(folder, *args, **kwargs)

    monkeypatch.setattr(durable_trainer, "rotate_checkpoints", looked_at)
    trainer = make_trainer(make_model(), **SAVING)
    trainer.train()
    assert seen[:2] == [[("checkpoint-3", None)], [("checkpoint-6", None), ("checkpoint-3", None)]]
    assert names(trainer.args.output_dir) == ["checkpoint-12"]


def test_resuming_skips_what_plain_trainer_left_half_written(make_trainer, make_model, tmp_path, caplog):
    settings = SAVING | {"save_total_limit": None}
    whole = make_trainer(make_model(), **settings)
    whole.train()
    last = tmp_path / "out" / "checkpoint-12"
    os.truncate(last / "optimizer.pt", 1000)
    with pytest.raises(ValueError, match=r"no complete checkpoint: optimizer.pt is cut off. .*one is .*checkpoint-9"):
        make_trainer(make_model(), **settings).train(resume_from_checkpoint=str(last))
    resumed = make_trainer(make_model(seed=5), **settings)
    resumed.train(resume_from_checkpoint=True)
    assert "checkpoint-12 is incomplete and is not used: optimizer.pt is cut off." in caplog.text
    assert resumed._initial_global_step == 9 and fault_of(last) is None
    assert_same_weights(resumed.model, whole.model)
    for path in checkpoints_in(tmp_path / "out"):
        (path / "trainer_state.json").unlink()
    with pytest.raises(ValueError, match="or none that is complete"):
        resumed.train(resume_from_checkpoint=True)


def test_processes_that_see_different_checkpoints_do_not_begin(make_trainer, make_model, monkeypatch):
    trainer = make_trainer(make_model())
    monkeypatch.setattr(trainer, "_of_all", lambda own: [own, "checkpoint-3"])
    with pytest.raises(ValueError, match=r"different checkpoints: \[None, 'checkpoint-3'\]"):
        trainer.train()


# ---- Data-loading processes ------------------------------------------------------------


class Dying(torch.utils.data.Dataset):
    """Does something to the process that loads one of its images."""

    def __init__(self, dataset, at, do):
        self.dataset, self.at, self.do = dataset, at, do

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        if index == self.at:
            self.do()
        return self.dataset[index]


@pytest.mark.parametrize("how", ["exits", "is killed"])
def test_a_data_loading_process_that_dies_ends_training_and_resuming_works(
    make_trainer, make_model, dataset, tmp_path, how
):
    def die_in_the_second_epoch():
        if not (tmp_path / "seen").exists():
            (tmp_path / "seen").touch()
        elif how == "exits":
            os._exit(3)
        else:
            os.kill(os.getpid(), signal.SIGKILL)

    settings = SAVING | {"dataloader_num_workers": 1}
    broken = make_trainer(make_model(), train_dataset=Dying(dataset, 0, die_in_the_second_epoch), **settings)
    begun = time.monotonic()
    told = r"A process that loads data died .*lower dataloader_num_workers.*checkpoint is .*checkpoint-\d"
    with pytest.raises(ChildProcessError, match=told) as stop:
        broken.train()
    assert time.monotonic() - begun < 60 and "\n" not in str(stop.value)
    if how == "is killed":
        mended = make_trainer(make_model(), **settings)
        mended.train(resume_from_checkpoint=True)
        whole = make_trainer(make_model(), **SAVING, output_dir=str(tmp_path / "whole"))
        whole.train()
        assert_same_weights(mended.model, whole.model)


def test_data_loading_processes_outlive_a_sigterm_to_all_of_a_job(make_trainer, make_model, dataset):
    data = Dying(dataset, 7, lambda: os.kill(os.getpid(), signal.SIGTERM))
    trainer = make_trainer(make_model(), train_dataset=data, num_train_epochs=1, dataloader_num_workers=1)
    trainer.train()
    assert trainer.state.global_step == 6


# ---- Several processes -----------------------------------------------------------------

TWO = """
import json, os, signal, time
from transformers import TrainerCallback
from hf_robust_ft.training.base import checkpoints
from hf_robust_ft.training.base.termination import Terminated

rank = int(os.environ["RANK"])

class At(TrainerCallback):
    def __init__(self, step, do):
        self.step, self.do = step, do

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step and rank == 1:
            self.do()

def build(name, *callbacks, **changes):
    settings = dict(output_dir=str(folder / name), callbacks=list(callbacks), per_device_train_batch_size=4,
                    save_strategy="steps", save_steps=3, num_train_epochs=3, robust_eval="no", ema_decay=0.9,
                    attack_random_start=True, ddp_timeout=60, save_total_limit=1)
    return make_trainer(make_model("vit", dropout=0.1), **settings | changes)

def end(trainer):
    return dict(trainer.model.state_dict()) | {f"average.{k}": v for k, v in trainer.weight_averaging.averages.items()}

def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)
"""

TERMINATED_THEN_KILLED = (
    TWO
    + """
facts = {}
whole = build("whole")
whole.train()
torch.save(end(whole), folder / f"whole-{rank}.pt")
try:
    build("stopped", At(4, lambda: os.kill(os.getpid(), signal.SIGTERM))).train()
except Terminated as stop:
    facts |= dict(code=stop.code, message=str(stop))
resumed = build("stopped")
resumed.train(resume_from_checkpoint=True)
facts |= dict(resumed_at=resumed._initial_global_step, same=same(end(resumed), end(whole)))

def fail(*args, **kwargs):
    raise OSError(28, "No space left on device")

flush = checkpoints.flush_to_disk
if rank == 0:
    checkpoints.flush_to_disk = lambda staged: fail() if staged.name == "checkpoint-6" else flush(staged)
try:
    build("full").train()
except OSError as error:
    facts |= dict(full=str(error), left=sorted(path.name for path in (folder / "full").iterdir()))
checkpoints.flush_to_disk = flush

def spoil(model=None):
    next(bad.model.parameters()).register_hook(lambda gradient: gradient * float("nan"))

bad = build("bad", At(2, spoil))
try:
    bad.train()
except FloatingPointError as error:
    facts |= dict(bad=str(error))
(folder / f"facts-{rank}.json").write_text(json.dumps(facts))
build("died", At(7, lambda: os.kill(os.getpid(), signal.SIGKILL))).train()
(folder / f"survived-{rank}").touch()
"""
)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    done = run_script(TERMINATED_THEN_KILLED, folder, processes=2, launcher=True)
    assert (folder / "facts-1.json").exists(), done.stderr
    files = [folder / f"facts-{rank}.json" for rank in (0, 1)]
    seconds = time.time() - max(path.stat().st_mtime for path in files)  # of the run in which one dies
    return folder, [json.loads(path.read_text()) for path in files], done, seconds


def test_sigterm_to_one_process_stops_both_after_the_same_step(two):
    _, facts, _, _ = two
    for each in facts:
        assert each["code"] == 143 and each["message"].startswith("SIGTERM: stopped after step 6 of 18")
        assert each["resumed_at"] == 6 and each["same"]


def test_one_process_that_cannot_save_stops_both(two):
    _, (first, second), _, _ = two
    assert first["full"].startswith("checkpoint-6 could not be written") and "No space left" in first["full"]
    assert second["full"].startswith("Process 0 could not save checkpoint-6: OSError: ")
    assert first["left"] == ["checkpoint-3"]


def test_a_gradient_that_is_nan_stops_both_and_both_keep_their_batch(two):
    folder, facts, _, _ = two
    told = [each["bad"].partition(" (eps")[0] for each in facts]
    assert told == 2 * ["The gradient's norm is nan after step 2"]
    kept = names(folder / "bad" / "diverged-step3")
    assert {"batch0-rank0.safetensors", "batch0-rank1.safetensors", "model.safetensors"} <= set(kept)


def test_a_process_that_dies_takes_the_job_down(two):
    folder, _, done, seconds = two
    assert done.returncode != 0 and not list(folder.glob("survived-*"))
    assert seconds < 120  # ddp_timeout=60, and the 30 that torchrun gives
    assert names(folder / "died") == ["checkpoint-6"] and fault_of(folder / "died" / "checkpoint-6") is None


@pytest.mark.slow
def test_a_job_whose_process_died_resumes_to_the_same_end(two):
    folder, _, _, _ = two
    script = TWO + 'resumed = build("died")\nresumed.train(resume_from_checkpoint=True)\n'
    script += 'assert resumed._initial_global_step == 6\ntorch.save(end(resumed), folder / f"resumed-{rank}.pt")\n'
    done = run_script(script, folder, processes=2, launcher=True)
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        whole, resumed = (torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for name in ("whole", "resumed"))
        assert_same_weights(resumed, whole)


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_job_within_its_timeout(tmp_path):
    script = (
        TWO + 'build("hung", At(4, lambda: (folder / "begun").touch() or time.sleep(1000)), ddp_timeout=5).train()\n'
    )
    done = run_script(script, tmp_path / "hung", processes=2, launcher=True)
    assert done.returncode != 0 and time.time() - (tmp_path / "hung" / "begun").stat().st_mtime < 90  # of 5 + 30
    assert names(tmp_path / "hung" / "hung") == ["checkpoint-3"] and STAGING not in names(tmp_path / "hung" / "hung")


@pytest.mark.slow
def test_sigterm_to_torchrun_reaches_all_and_saves(tmp_path):
    """As SLURM or Kubernetes send it: to the launcher, which hands it on and waits 30 seconds."""
    script = TWO + "def signal_launcher():\n    os.kill(os.getppid(), signal.SIGTERM)\n    time.sleep(3)\n"
    script += 'build("run", At(4, signal_launcher), max_steps=1000).train()\n'
    done = run_script(script, tmp_path / "launched", processes=2, launcher=True)
    assert done.returncode != 0 and "SIGTERM: stopped after step " in done.stderr
    saved = checkpoints_in(tmp_path / "launched" / "run")
    assert 5 <= int(saved[0].name.split("-")[1]) < 1000 and fault_of(saved[0]) is None
