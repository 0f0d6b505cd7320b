"""A request as the routes see it, an answer, and the errors that the Hub gives."""

import json
from dataclasses import dataclass, field
from urllib.parse import parse_qs, quote

from loopback_hub.repositories import Commit, Repository

URL_PREFIX = {"model": "", "dataset": "datasets/", "space": "spaces/"}


@dataclass(frozen=True)
class User:
    name: str
    role: str = "write"


@dataclass(frozen=True)
class Call:
    """One request: `hub` is the server's state, `values` the parts of the path that the route names."""

    hub: object
    method: str
    path: str
    query: dict[str, list[str]]
    headers: object
    body: bytes
    user: User | None
    values: dict[str, str] = field(default_factory=dict)

    def json(self) -> dict:
        return json.loads(self.body)

    def form(self) -> dict[str, list[str]]:
        """The body's fields, sent as a form or as JSON."""
        if "json" in self.headers.get("Content-Type", ""):
            return {key: value if isinstance(value, list) else [value] for key, value in self.json().items()}
        return parse_qs(self.body.decode())

    def asks(self, name: str) -> bool:
        return self.query.get(name, ["false"])[0].lower() in ("1", "true")


@dataclass
class Answer:
    """`content` marks the bytes of a repository's file, which the faults of a download may spoil."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    content: bool = False

    @classmethod
    def of(cls, value: object, status: int = 200, **headers: str) -> "Answer":
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})


class HubError(Exception):
    """An error answer: a status, the Hub's X-Error-Code if it gives one, and its message."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str):
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers

    def answer(self) -> Answer:
        headers = {"X-Error-Message": self.message, **self.headers}
        if self.code:
            headers["X-Error-Code"] = self.code
        return Answer.of({"error": self.message}, self.status, **headers)


def find_repository(call: Call, *, files: bool = False, write: bool = False) -> Repository:
    """The repository that the path names, if this user may see it (`files`: download from it, `write`: change it).

    Without a token the Hub answers 401 for what is missing, private or gated alike. It gives the first two no error
    code, and its client takes such a 401 for a missing repository on https addresses only; so the code is sent here.
    """
    repo_id, kind = call.values["repo_id"], call.values["kind"]
    repository, user = call.hub.find(repo_id, kind), call.user
    if repository is None or (repository.private and (user is None or user.name != repository.owner)):
        if user is None:
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        raise HubError(404, "Repository not found", "RepoNotFound")
    if files and repository.gated and (user is None or user.name not in {repository.owner, *repository.readers}):
        page = f"{call.hub.url}/{URL_PREFIX[kind]}{repo_id}"
        if user is None:
            advice = "You must have access to it and be authenticated to access it. Please log in."
            raise HubError(401, f"Access to {kind} {repo_id} is restricted. {advice}", "GatedRepo")
        advice = f"you are not in the authorized list. Visit {page} to ask for access."
        raise HubError(403, f"Access to {kind} {repo_id} is restricted and {advice}", "GatedRepo")
    if write:
        if user is None:
            raise HubError(401, "Invalid username or password.")
        if user.name != repository.owner or user.role != "write":
            raise HubError(403, f"Forbidden: you must use a write token to upload to {repo_id}.")
    return repository


def find_commit(call: Call, repository: Repository) -> Commit:
    revision = call.values.get("revision", "main")
    commit = repository.resolve(revision)
    if commit is None:
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return commit


def page_url(call: Call, **changes: object) -> str:
    """This call's address with other query values."""
    values = {name: entries[0] for name, entries in call.query.items()} | changes
    return f"{call.hub.url}{call.path}?" + "&".join(f"{name}={quote(str(value))}" for name, value in values.items())
