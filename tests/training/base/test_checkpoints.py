"""Which checkpoints are complete, and how one gets its name."""

import json
import shutil

import pytest
from safetensors.torch import save_file

from hf_robust_ft.training.base.checkpoints import (
    STAGING,
    checkpoints_in,
    clear_leftovers,
    fault_of,
    flush_to_disk,
    move_into_place,
    newest_complete,
)

FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "config.json")


@pytest.fixture
def run(make_trainer, make_model, tmp_path):
    """A run's folder with three complete checkpoints."""
    make_trainer(make_model(), num_train_epochs=1, save_strategy="steps", save_steps=2).train()
    return tmp_path / "out"


def test_the_newest_complete_checkpoint_is_found(run, caplog):
    assert [path.name for path in checkpoints_in(run)] == ["checkpoint-6", "checkpoint-4", "checkpoint-2"]
    assert newest_complete(run) == str(run / "checkpoint-6") and not caplog.records
    (run / "checkpoint-6" / "trainer_state.json").unlink()
    state = run / "checkpoint-4" / "trainer_state.json"
    state.write_text(state.read_text()[:-9])
    assert newest_complete(run, tells=False) == str(run / "checkpoint-2") and not caplog.records
    newest_complete(run)
    first, second = caplog.messages
    assert "checkpoint-6 is incomplete and is not used: trainer_state.json, which is written last, is missing." in first
    assert "checkpoint-4 is incomplete and is not used: trainer_state.json is cut off." in second
    assert newest_complete(run / "nowhere") is None


def test_every_file_that_was_cut_off_is_noticed(run):
    folder = run / "checkpoint-6"
    assert {path.name for path in folder.iterdir()} >= set(FILES)
    for name in FILES:
        path, whole = folder / name, (folder / name).read_bytes()
        for length in (0, 1, len(whole) // 2, len(whole) - 2):
            path.write_bytes(whole[:length])
            assert fault_of(folder) == f"{name} is cut off", (name, length)
        path.write_bytes(whole)
        assert fault_of(folder) is None
    (folder / "checkpoint-is-incomplete.txt").touch()
    assert "says so" in fault_of(folder)


def test_weights_and_shards_that_are_missing_are_noticed(run, make_model, tmp_path):
    folder = run / "checkpoint-6"
    (folder / "model.safetensors").unlink()
    assert fault_of(folder) == "it holds no weights"
    make_model("vit").save_pretrained(folder, max_shard_size="5KB")
    assert fault_of(folder) is None
    next(folder.glob("model-00002*")).unlink()
    assert fault_of(folder).startswith("model-00002-of") and fault_of(folder).endswith("is missing")
    shards = folder / "pytorch_model_fsdp_0"
    shutil.rmtree(folder / "pytorch_model_fsdp_0", ignore_errors=True)
    for path in folder.glob("model*"):
        path.unlink()
    shards.mkdir()
    (shards / "__0_0.distcp").write_bytes(b"PK")
    assert fault_of(folder) == "pytorch_model_fsdp_0/.metadata, which is written last, is missing"
    (shards / ".metadata").touch()
    assert fault_of(folder) is None


def test_a_state_that_is_missing_is_noticed(run):
    """Trainer goes on without it, from a new optimizer and other random numbers, and says nothing."""
    folder = run / "checkpoint-6"
    states = {"optimizer.pt": "optimizer", "scheduler.pt": "learning rate schedule", "rng_state.pth": "random state"}
    for name, told in states.items():
        (folder / name).rename(run / name)
        assert fault_of(folder) == f"it lacks the {told}"
        (run / name).rename(folder / name)
    for name in states:
        (folder / name).unlink()
    assert fault_of(folder) == "it holds the model alone, as save_only_model has it"
    assert newest_complete(run) == str(run / "checkpoint-4")


def test_a_checkpoint_takes_the_place_of_another_or_of_none(tmp_path):
    for weights in ("first", "second"):
        staged = tmp_path / STAGING / "checkpoint-3"
        staged.mkdir(parents=True)
        (staged / weights).touch()
        flush_to_disk(staged)
        move_into_place(staged, tmp_path / "checkpoint-3")
        assert [path.name for path in (tmp_path / "checkpoint-3").iterdir()] == [weights]
        assert not (tmp_path / STAGING).exists()
    move_into_place(staged, tmp_path / "checkpoint-3")  # as by a second node that shares the disk
    assert (tmp_path / "checkpoint-3" / "second").exists()


def test_leftovers_are_told_and_removed_and_what_was_being_replaced_comes_back(tmp_path, caplog):
    for name in ("checkpoint-6", "replaced-checkpoint-4", "replaced-checkpoint-2"):
        (tmp_path / STAGING / name).mkdir(parents=True)
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "new").touch()
    clear_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    assert (tmp_path / "checkpoint-2" / "new").exists()
    (message,) = caplog.messages
    assert "checkpoint-6 was being written when the run ended: it is incomplete and removed." in message


def test_a_file_of_tensors_is_measured_by_its_header(tmp_path):
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    (folder / "trainer_state.json").write_text(json.dumps({}))
    for state in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (folder / state).write_bytes(b"an old pickle shows no end")
    save_file({}, folder / "model.safetensors")
    assert fault_of(folder) is None
    (folder / "model.safetensors").write_bytes(b"\xff" * 8 + b"{}")  # a header longer than any memory
    assert fault_of(folder) == "model.safetensors is cut off"
