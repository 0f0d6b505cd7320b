"""Scripts in processes of their own, without the seconds that importing takes in each.

They are forked from a process that has done nothing but import, hence are what `python script.py` would be by then:
own signals, exit status, standard output and error, and an interpreter that ends as any other.

    done = LIBRARIES.run(script, [environment_of_rank_0, environment_of_rank_1], folder, timeout=60)
"""

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

# A line asks for a process or, empty, for the end of the next one.
PARENT = """
import gc, json, os, sys
sys.path[:1] = {path!r}
{imports}
gc.collect()
gc.freeze()
for line in sys.stdin:
    job = json.loads(line)
    if job is None:
        ended, status = os.wait()
        print(ended, os.waitstatus_to_exitcode(status), flush=True)
        continue
    child = os.fork()
    if child == 0:
        break
    print(child, flush=True)
else:
    os._exit(0)
for number, name in enumerate([os.devnull, job["stdout"], job["stderr"]]):
    opened = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    os.dup2(opened, number)
    os.close(opened)
os.environ.clear()
os.environ.update(job["environment"])
os.chdir(job["folder"])
sys.argv[:] = [job["script"]]
sys.path[:1] = [os.path.dirname(job["script"]), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
__file__ = job["script"]
exec(compile(open(__file__).read(), __file__, "exec"))
"""


class Libraries:
    """A process that has imported, started when first needed, from which scripts are forked."""

    def __init__(self, imports: str, path: list[str] | None = None):
        self.imports, self.path, self._parent = imports, ["", *(path or [])], None
        # Now, before a test changes it. Sets are ordered as another process of the user's might.
        self._environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "3"}

    def _ask(self, job: dict | None, until: float) -> list[int]:
        if self._parent is None:
            command = [sys.executable, "-c", PARENT.format(path=self.path, imports=self.imports)]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
            self._parent = subprocess.Popen(command, env=self._environment, **pipes)
            atexit.register(self._parent.communicate)  # its input ends, and it
        self._parent.stdin.write(json.dumps(job) + "\n")
        if not select.select([self._parent.stdout], [], [], max(0, until - time.monotonic()))[0]:
            raise TimeoutError
        answer = self._parent.stdout.readline().split()
        assert answer, f"The process to fork from has ended; it was to run: {self.imports}"
        return [int(word) for word in answer]

    def run(
        self, script: Path, environments: list[dict[str, str]], folder: Path, timeout: float
    ) -> subprocess.CompletedProcess:
        """Run the script once an environment, at the same time, in `folder`.

        Like torchrun, it ends the others once one has failed. The return code is the first that is not 0.

        Raises:
            subprocess.TimeoutExpired: they took longer than `timeout` seconds, and were killed.
        """
        until, running, codes = time.monotonic() + timeout, set(), []
        job = job_of(script, folder)
        try:
            for environment in environments:
                running.update(self._ask(job | {"environment": environment}, until))
            while running:
                pid, code = self._ask(None, until)
                running.discard(pid)
                codes.append(code)
                if code:
                    end(running, signal.SIGTERM)
        except TimeoutError as error:
            end(running, signal.SIGKILL)
            self._parent.kill()  # it waits for what was just killed
            self._parent = None
            raise subprocess.TimeoutExpired(str(script), timeout) from error
        output = [Path(job[name]).read_text(errors="replace") for name in ("stdout", "stderr")]
        return subprocess.CompletedProcess([str(script)], next(filter(None, codes), 0), *output)

    def run_module(
        self, words: list[str], environment: dict[str, str], folder: Path, timeout: float = 300
    ) -> subprocess.CompletedProcess:
        """Run `python -m WORDS` in `folder`, where its script and output are left."""
        script = folder / f"{words[0]}_main.py"
        script.write_text(
            f"import runpy, sys\nsys.argv[1:] = {words[1:]!r}\n"
            f"runpy.run_module({words[0]!r}, run_name='__main__', alter_sys=True)\n"
        )
        return self.run(script, [environment], folder, timeout)

    def kill_once(self, is_time: Callable[[], bool], script: Path, environment: dict[str, str], pause: float) -> str:
        """Run the script, and kill it as soon as it is time, after two minutes or once it has ended; what it wrote."""
        until, job = time.monotonic() + 120, job_of(script, Path.cwd())
        (pid,) = self._ask(job | {"environment": environment}, until)
        while not is_time() and time.monotonic() < until and not has_ended(pid):
            time.sleep(pause)
        end({pid}, signal.SIGKILL)
        self._ask(None, time.monotonic() + 10)
        return Path(job["stdout"]).read_text(errors="replace") + Path(job["stderr"]).read_text(errors="replace")


def job_of(script: Path, folder: Path) -> dict[str, str]:
    """What to run where, and the files it writes to, of which none are left of an earlier run."""
    job = {"script": str(script.absolute()), "folder": str(folder)}
    for name in ("stdout", "stderr"):
        job[name] = str(script.absolute().with_suffix(f".{name}"))
        Path(job[name]).unlink(missing_ok=True)
    return job


def has_ended(pid: int) -> bool:
    """Whether nothing of a process is left but its exit status."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


# Nothing that imports the client of the Hub, whose settings are read when it is imported.
LIBRARIES = Libraries(
    "import aiohttp, fsspec, matplotlib.pyplot, numpy, pandas, PIL.Image, pyarrow.dataset, scipy.stats, sympy\n"
    "import torch, torch._dynamo, torch._inductor, torch.distributed.tensor, torchvision"
)
LIBRARIES_AND_OURS = Libraries("import conftest", [str(Path(__file__).parent)])


def end(processes: set[int], how: signal.Signals) -> None:
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, how)


def ranks(processes: int) -> list[dict[str, str]]:
    """What torchrun puts into the environment of each process."""
    if processes == 1:
        return [{}]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    size = str(processes)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
