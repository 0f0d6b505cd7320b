"""Forked scripts are what `python script.py` is: output, exit status, signals and an end in time."""

import os
import signal
import subprocess
import time

import pytest
from forked import Libraries, ranks

QUICK = Libraries("import decimal")


@pytest.fixture
def run(tmp_path):
    def run(body, processes=1, timeout=30, **environment):
        script = tmp_path / "script.py"
        script.write_text(body)
        each = [os.environ | environment | rank for rank in ranks(processes)]
        return QUICK.run(script, each, tmp_path, timeout)

    return run


def test_output_folder_arguments_and_environment(run, tmp_path):
    body = (
        "import atexit, os, sys\natexit.register(print, 'end')\n"
        "print(__name__, os.getcwd(), sys.argv, sys.path[0], os.environ['ASKED'])\n"
        "print('decimal' in sys.modules, file=sys.stderr)"
    )
    done = run(body, ASKED="this")
    here = str(tmp_path)
    assert done.stdout == f"__main__ {here} {[here + '/script.py']} {here} this\nend\n"
    assert done.stderr == "True\n" and done.returncode == 0


@pytest.mark.parametrize(
    ("body", "code", "told"),
    [
        ("import sys\nsys.exit(3)", 3, ""),
        ("import sys\nsys.exit('no disk')", 1, "no disk"),
        ("1 / 0", 1, "ZeroDivisionError"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
    ],
)
def test_how_it_ended(run, body, code, told):
    done = run(body)
    assert done.returncode == code and told in done.stderr


def test_the_others_end_once_one_has_failed(run):
    start = time.monotonic()
    done = run("import os, sys, time\ntime.sleep(100) if os.environ['RANK'] == '0' else sys.exit(5)", processes=2)
    assert done.returncode == 5 and time.monotonic() - start < 20


def test_what_takes_too_long_is_killed_and_the_next_one_runs(run):
    with pytest.raises(subprocess.TimeoutExpired):
        run("import time\ntime.sleep(100)", timeout=3)
    assert run("print('next')").stdout == "next\n"
