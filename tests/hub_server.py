"""A Hugging Face Hub on 127.0.0.1, for the real client code: in memory, with tokens, a log and planned failures.

    with HubServer() as hub:
        hub.create("someone/model", {"config.json": "{}"}, gated=True, readers={hub.user})
        hub.fail("/resolve/main/config.json", status=500, method="HEAD", times=1)
        script = "from huggingface_hub import *\\nfound['got'] = hf_hub_download('someone/model', 'config.json')"
        found = hub.run(script, folder, token=hub.token)

The client's settings are read when it is imported, so client code runs in a process of its own, which has not imported
it yet, with `hub.environment(folder)`. `hub.run` does both; what its script puts into the dictionary `found` comes
back.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from http.server import ThreadingHTTPServer
from pathlib import Path

from forked import LIBRARIES
from loopback_hub.exchange import User
from loopback_hub.faults import Fault
from loopback_hub.handler import Handler, LogEntry
from loopback_hub.repositories import Repository

SCRIPT = """
import json, os, sys, time
found = {{}}
# Clients wait for up to 8 s before they try again.
time.sleep = lambda seconds, sleep=time.sleep: sleep(min(seconds, 0.01))

def attempt(call, *args, **options):
    "What the call returns, or of its error the type's name, the message and the causes' names."
    try:
        return {{"value": call(*args, **options)}}
    except Exception as error:
        causes, cause = [], error
        while cause is not None and cause not in causes:
            causes.append(cause)
            cause = cause.__cause__ or cause.__context__
        names = [type(cause).__name__ for cause in causes]
        return {{"error": names[0], "message": str(error), "causes": names}}

{body}
with open({path!r}, "w") as file:
    json.dump(found, file, default=str)
"""


class HubServer:
    """The server and what it holds.

    `token` may write to the repositories of `user`; `reading_token` belongs to the same user and may only read;
    `other_token` is another user's.
    """

    user, token, reading_token, other_token = "tester", "hf_writes", "hf_reads", "hf_stranger"

    def __init__(self, page_size: int = 1000):
        """
        Args:
            page_size: entries a page of the tree endpoint; the Hub's is 1000.
        """
        self.page_size = page_size
        self.users = {
            self.token: User(self.user),
            self.reading_token: User(self.user, role="read"),
            self.other_token: User("stranger"),
        }
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.log: list[LogEntry] = []
        self.faults: list[Fault] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": self}))
        self._server.daemon_threads = True

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def store_url(self) -> str:
        """Another host name for the file store: there the client must not send its token."""
        return f"http://localhost:{self._server.server_port}"

    def create(
        self,
        repo_id: str,
        files: Mapping[str, bytes | str],
        *,
        kind: str = "model",
        sha: str | None = None,
        **options: object,
    ) -> Repository:
        """A repository with one commit of `files`, whose id may be given (`sha`); options: private, gated, readers."""
        repository = self.add(Repository(repo_id, kind, **options))
        repository.commit(files, author=repository.owner, sha=sha)
        self.keep_blobs(repository)
        return repository

    def add(self, repository: Repository) -> Repository:
        self.repositories[repository.kind, repository.repo_id] = repository
        return repository

    def remove(self, repository: Repository) -> None:
        del self.repositories[repository.kind, repository.repo_id]

    def find(self, repo_id: str, kind: str = "model") -> Repository | None:
        return self.repositories.get((kind, repo_id))

    def keep_blobs(self, repository: Repository) -> None:
        """Put the repository's large files where they are downloaded from."""
        for commit in repository.commits.values():
            self.blobs.update({file.sha256: file.content for file in commit.files.values() if file.large})

    def fail(self, pattern: str, kind: str = "status", **options: object) -> Fault:
        """Plan a failure of the next requests whose path matches; see `Fault` for kinds and options."""
        fault = Fault(kind, pattern, **options)
        self.faults.append(fault)
        return fault

    def next_fault(self, stage: str, method: str, path: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.applies(stage, method, path):
                    fault.used()
                    return fault
        return None

    def requests(self, method: str | None = None, part: str = "") -> list[LogEntry]:
        """The requests so far, by method and a part of the path."""
        return [entry for entry in list(self.log) if method in (None, entry.method) and part in entry.path]

    def environment(self, folder: Path, token: str | None = None) -> dict[str, str]:
        """The environment of a client process: this Hub, caches inside `folder`, none of the caller's Hub settings."""
        foreign = ("HF_", "HUGGING", "TRANSFORMERS_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        ours = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(folder / "hf_home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0",
            "NO_PROXY": "127.0.0.1,localhost",
            "OMP_NUM_THREADS": "1",
            # Without the modules that `evaluate` wrote for this process.
            "PYTHONPATH": os.pathsep.join(
                path for path in sys.path if path and not Path(path, "evaluate_modules").exists()
            ),
        }
        if token is not None:
            ours["HF_TOKEN"] = token
        return kept | ours

    def run(self, body: str, folder: Path, token: str | None = None, timeout: float = 120, **environment: str) -> dict:
        """Run `body` in a client process and return its dictionary `found` (see `attempt` in `SCRIPT`)."""
        folder.mkdir(parents=True, exist_ok=True)
        script, result = folder / "script.py", folder / "found.json"
        result.unlink(missing_ok=True)
        script.write_text(SCRIPT.format(body=body, path=str(result)))
        settings = self.environment(folder, token) | environment
        try:
            run = LIBRARIES.run(script, [settings], folder, timeout)
        except subprocess.TimeoutExpired as error:
            last = "\n".join(map(str, self.log[-5:]))
            raise AssertionError(f"The client process took over {timeout} s. Its last requests:\n{last}") from error
        if run.returncode:
            raise AssertionError(f"The client process ended with {run.returncode}:\n{run.stdout}\n{run.stderr}")
        return json.loads(result.read_text()) | {"stderr": run.stderr}
