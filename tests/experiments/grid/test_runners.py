"""The same cells, whatever runs them."""

import json
import signal
import sys

import pytest

from hf_robust_ft.cli.main import main

TRAINED = 2 * 43  # images: two epochs of 48, of which 5 are split off for validation
NAMES = [f"tinyvit.colours.Linf.16_255.{setting}.seed0" for setting in ("standard", "fix")]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the processes that runners start


@pytest.fixture
def in_process(grid_argv, kept, tmp_path):
    """What the cells are when they run here."""
    main(grid_argv)
    found = [kept(name) for name in NAMES]
    (tmp_path / "grid").rename(tmp_path / "in_process")
    return found


def test_launched_cells_are_the_same(grid_argv, in_process, kept, tmp_path):
    main([*grid_argv, "--runner", "launch", "--launcher", sys.executable])
    assert [kept(name) for name in NAMES] == in_process
    assert (tmp_path / "grid" / "logs" / f"{NAMES[0]}.log").is_file()


def test_launched_on_two_processes(grid_argv, kept, tmp_path):
    launcher = f"{sys.executable} -m torch.distributed.run --nproc_per_node 2 --standalone"
    main([*grid_argv, "--settings", "fix", "--runner", "launch", "--launcher", launcher])
    found = kept(NAMES[1])
    assert found["configuration"]["world_size"] == 2 and found["passes"]["training"] == TRAINED


@pytest.mark.parametrize(
    ("launcher", "message"),
    [
        ("no-such-launcher", "The launcher 'no-such-launcher' cannot be started"),
        ("false", "false ended with exit code 1; see logs/"),
    ],
)
def test_a_launcher_that_fails_is_told(grid_argv, launcher, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*grid_argv, "--runner", "launch", "--launcher", launcher])
    assert message in str(stop.value.code) + capsys.readouterr().err


def test_a_launched_cell_that_fails_tells_why(grid_argv, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main(
            [
                *grid_argv,
                "--settings",
                "fix",
                "--runner",
                "launch",
                "--launcher",
                sys.executable,
                "--max_eval_samples",
                "1",
                "--test_size",
                "7",
            ]
        )
    assert "cells without a result: 1." in str(stop.value.code) and "test_size" in str(stop.value.code)


def test_on_a_local_ray_cluster(grid_argv, in_process, kept, tmp_path, capsys):
    ray = pytest.importorskip("ray", reason="needs the extra 'ray'")
    main([*grid_argv, "--runner", "ray"])
    assert [kept(name) for name in NAMES] == in_process
    with pytest.raises(SystemExit) as stop:
        main(
            [
                *grid_argv,
                "--runner",
                "ray",
                "--settings",
                "fix",
                "--seeds",
                "1",
                "--max_train_samples",
                "1000000",
                "--test_size",
                "7",
            ]
        )
    assert "cells without a result: 1." in str(stop.value.code) and "test_size" in str(stop.value.code)
    # Ray's own handler would keep later trainings in this process from saving when they are told to end.
    assert not ray.is_initialized() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_without_ray_the_extra_is_named(grid_argv, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit):
        main([*grid_argv, "--runner", "ray"])
    assert "pip install 'hf_robust_ft[ray]'" in capsys.readouterr().err


def test_a_dry_run_totals_what_is_left(grid_argv, tmp_path, capsys):
    plan = tmp_path / "plan.json"
    main([*grid_argv, "--seeds", "0", "1", "--dry_run", "--plan_json", str(plan)])
    content = json.loads(plan.read_text())
    assert [row["cell"].split(".")[4] for row in content["rows"]] == ["standard", "fix"]
    assert content["totals"]["seeds"] == 4 and content["totals"]["images"] == 4 * TRAINED
    standard, fix = content["rows"]
    assert fix["attack"] - standard["attack"] == 2 * TRAINED  # the training attack's passes
    assert not (tmp_path / "grid").exists()
    main([*grid_argv, "--settings", "standard"])
    main([*grid_argv, "--dry_run", "--plan_json", str(plan)])
    assert json.loads(plan.read_text())["totals"]["done"] == 1


def test_steps_of_the_training_attack_are_told_from_the_evaluations(grid_argv, capsys):
    main([*grid_argv, "--dry_run", "--attack_steps=3"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("--attack_steps")]
    assert line == (
        "--attack_steps 3 is of the training attack. Cells are measured by protocol paper, its steps "
        "--eval_attack_steps: 1."
    )
