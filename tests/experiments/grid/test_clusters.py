"""The guide's lines for a job array, run here, with tasks that run at once."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hf_robust_ft.cli.main import main
from hf_robust_ft.experiments.grid.reproducing import parse_grid

GUIDE = Path(__file__).parents[3] / "notebooks" / "guides" / "reproduction.md"
NAMES = [f"tinyvit.colours.Linf.16_255.{setting}.seed0" for setting in ("standard", "fix")]
CELLS = "Cells: {}, --cell 0 to {}."
# All tasks of an array at once, as a cluster with room for them would; a job without an array is one task.
SBATCH = """#!/bin/bash
for word in "$@"; do case $word in --array=0-*) last=${word#--array=0-};; esac; done
for task in $(seq 0 ${last:-0}); do
    SLURM_ARRAY_TASK_ID=$task bash -c "${@: -1}" > job.$(ls | grep -c '^job')-$task.log 2>&1 &
    tasks="$tasks $!"
    sleep 0.1
done
for task in $tasks; do wait $task || echo $? >> failed; done
echo 17
"""


def guide_lines(first: str) -> str:
    """The guide's block of commands that begins with a line."""
    (block,) = [each for each in re.findall(r"```bash\n(.*?)```", GUIDE.read_text(), re.S) if each.startswith(first)]
    return block


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A folder to run in, with `sbatch` and `hf-robust-ft` on the path."""
    programs = tmp_path / "programs"
    programs.mkdir()
    ours = f'#!/bin/bash\nexec {shlex.quote(sys.executable)} -m hf_robust_ft "$@"\n'
    for name, content in {"sbatch": SBATCH, "hf-robust-ft": ours}.items():
        (programs / name).write_text(content)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    package = Path(__file__).parents[3]
    monkeypatch.setenv("PYTHONPATH", f"{package}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    folder = tmp_path / "jobs"
    folder.mkdir()
    return folder


def test_the_guides_job_array_runs_all_cells_at_once_and_gathers_their_tables(grid_argv, kept, cluster, tmp_path):
    lines = guide_lines("RUN=").splitlines()
    command = shlex.join(["hf-robust-ft", *grid_argv])
    script = "\n".join([f"RUN={shlex.quote(command)}", *lines[2:]]).replace("0-119", "0-1")
    subprocess.run(["bash", "-e", "-c", script], cwd=cluster, check=True)
    logs = [file.read_text() for file in sorted(cluster.glob("job.*.log"))]
    assert not (cluster / "failed").exists(), logs
    assert [kept(name)["passes"]["training"] for name in NAMES] == [2 * 43] * 2
    assert len(logs) == 3 and ["Tables and pictures" in log for log in logs] == [False, False, True]
    tables = (tmp_path / "grid" / "tables.md").read_text()
    assert "standard" in tables and "fix" in tables


def test_the_guide_says_how_many_cells_its_grid_has():
    command, _, last_line = guide_lines("RUN=").splitlines()[1].partition("  # its last line: ")
    options, _, train_options = parse_grid(shlex.split(command)[2:], "")
    count = len(options.grid(train_options).jobs())
    assert last_line == CELLS.format(count, count - 1)


def test_cells_are_numbered_and_one_that_is_not_there_is_refused(grid_argv, capsys, tmp_path):
    main([*grid_argv, "--dry_run"])
    assert capsys.readouterr().out.splitlines()[-1] == CELLS.format(2, 1)
    for options, message in {
        ("--cell", "2"): "There is no cell 2: these are 2, --cell 0 to 1.",
        ("--cell", "1", "--only", "*fix*"): "There is no cell 1: these are 1, --cell 0 to 0.",
        ("--cell", "-1"): "cell must be at least 0",
        ("--cell", "1", "--runner", "none"): "--cell 1 runs a cell, and --runner none runs none",
    }.items():
        with pytest.raises(SystemExit):
            main([*grid_argv, *options])
        assert message in capsys.readouterr().err
    assert not (tmp_path / "grid").exists()


def test_without_a_runner_what_is_missing_is_named(grid_argv, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main([*grid_argv, "--runner", "none"])
    assert "cells without a result: 2." in str(stop.value.code) and f"{NAMES[0]}: not run" in str(stop.value.code)
    assert not (tmp_path / "grid" / "cells").exists()


def test_the_guides_line_for_ray_asks_the_cluster_for_what_it_says():
    line = guide_lines("ray start").splitlines()[-1]
    options, _, train_options = parse_grid(shlex.split(line)[2:], "")
    assert (options.runner, options.ray_address, options.ray_cpus, options.ray_gpus) == (
        "ray", "$FIRST_NODE:6379", 8, 1
    )  # fmt: skip
    assert options.grid(train_options).jobs()
