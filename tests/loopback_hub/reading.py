"""The endpoints that tell and send: who am I, repository, tree, paths-info, refs, commits, resolve, the file store."""

from pathlib import PurePosixPath
from urllib.parse import quote

import yaml

from loopback_hub.exchange import Answer, Call, HubError, find_commit, find_repository, page_url
from loopback_hub.repositories import DATE, Commit, blob_id


def whoami(call: Call) -> Answer:
    if call.user is None:
        raise HubError(401, "Invalid username or password.")
    token = {"displayName": "test", "role": call.user.role}
    return Answer.of(
        {
            "type": "user",
            "id": call.user.name,
            "name": call.user.name,
            "fullname": call.user.name,
            "email": f"{call.user.name}@example.org",
            "emailVerified": True,
            "isPro": False,
            "orgs": [],
            "auth": {"type": "access_token", "accessToken": token},
        }
    )


def auth_check(call: Call) -> Answer:
    find_repository(call, files=True)
    return Answer.of({})


def repository_info(call: Call) -> Answer:
    repository = find_repository(call)
    commit = find_commit(call, repository)
    siblings = [{"rfilename": path} for path in sorted(commit.files)]
    if call.asks("blobs"):
        for sibling in siblings:
            entry = commit.files[sibling["rfilename"]].entry(sibling["rfilename"])
            sibling |= {"size": entry["size"], "blobId": entry["oid"]}
            if "lfs" in entry:
                lfs = entry["lfs"]
                sibling["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
    return Answer.of(
        {
            "_id": blob_id(repository.repo_id.encode()),
            "id": repository.repo_id,
            "modelId": repository.repo_id,
            "author": repository.owner,
            "sha": commit.sha,
            "lastModified": DATE,
            "createdAt": DATE,
            "private": repository.private,
            "gated": "manual" if repository.gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": siblings,
            **({"cardData": card} if (card := card_data(commit)) else {}),
        }
    )


def card_data(commit: Commit) -> dict | None:
    """The metadata of a commit's README, where they can be read."""
    readme = commit.files.get("README.md")
    text = readme.content.decode() if readme else ""
    if not text.startswith("---"):
        return None
    try:
        data = yaml.safe_load(text.split("---")[1])
    except yaml.YAMLError:
        return None
    return data if isinstance(data, dict) else None


def folders_of(commit: Commit) -> set[str]:
    return {str(parent) for path in commit.files for parent in PurePosixPath(path).parents} - {"."}


def entries_of(commit: Commit, expand: bool) -> dict[str, dict]:
    """Every file and folder of a commit, by path."""
    entries = {path: file.entry(path) for path, file in commit.files.items()}
    for path in folders_of(commit):
        entries[path] = {"type": "directory", "path": path, "oid": blob_id(f"{commit.sha}/{path}".encode()), "size": 0}
    if expand:
        for entry in entries.values():
            entry["lastCommit"] = {"id": commit.sha, "title": commit.title, "date": DATE}
    return dict(sorted(entries.items()))


def tree(call: Call) -> Answer:
    """A folder's entries, a page at a time: the next page's address is in the Link header."""
    repository = find_repository(call)
    commit = find_commit(call, repository)
    folder = call.values.get("path") or ""
    entries = entries_of(commit, call.asks("expand"))
    if folder and entries.get(folder, {}).get("type") != "directory":
        raise HubError(404, f"{folder} does not exist on {commit.sha}", "EntryNotFound")
    inside = [entry for path, entry in entries.items() if path.startswith(f"{folder}/" if folder else "")]
    if not call.asks("recursive"):
        depth = len(PurePosixPath(folder).parts) + 1
        inside = [entry for entry in inside if len(PurePosixPath(entry["path"]).parts) == depth]
    start, size = int(call.query.get("cursor", ["0"])[0]), call.hub.page_size
    headers = {}
    if start + size < len(inside):
        headers["Link"] = f'<{page_url(call, cursor=start + size)}>; rel="next"'
    return Answer.of(inside[start : start + size], **headers)


def paths_info(call: Call) -> Answer:
    repository = find_repository(call)
    form = call.form()
    expand = str(form.get("expand", ["false"])[0]).lower() == "true"
    entries = entries_of(find_commit(call, repository), expand)
    return Answer.of([entries[path] for path in form.get("paths", []) if path in entries])


def references(call: Call) -> Answer:
    repository = find_repository(call)

    def told(kind: str, commits: dict[str, Commit]) -> list[dict]:
        return [
            {"name": name, "ref": name if kind == "pr" else f"refs/{kind}/{name}", "targetCommit": commit.sha}
            for name, commit in commits.items()
        ]

    pulls = repository.pull_requests
    branches = {name: commit for name, commit in repository.branches.items() if name not in pulls}
    answer = {"branches": told("heads", branches), "converts": [], "tags": told("tags", repository.tags)}
    if call.asks("include_prs"):
        answer["pullRequests"] = told("pr", pulls)
    return Answer.of(answer)


def commits(call: Call) -> Answer:
    repository = find_repository(call)
    history, commit = [], find_commit(call, repository)
    while commit is not None:
        authors = [{"user": commit.author}]
        history.append(
            {"id": commit.sha, "title": commit.title, "message": commit.description, "date": DATE, "authors": authors}
        )
        commit = commit.parent
    return Answer.of(history)


def resolve(call: Call) -> Answer:
    """A file's content, or for a large file the way to the file store, on another host as on the Hub."""
    repository = find_repository(call, files=True)
    commit, path = find_commit(call, repository), call.values["path"]
    if path not in commit.files:
        raise HubError(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": commit.sha})
    file = commit.files[path]
    headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes", "ETag": f'"{file.oid}"'}
    headers["Content-Disposition"] = f"inline; filename*=UTF-8''{quote(PurePosixPath(path).name)};"
    if file.large:
        headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
        headers["Location"] = f"{call.hub.store_url}/store/{repository.repo_id}/{file.sha256}/{quote(path)}"
        return Answer(302, b"", headers)
    return send(call, file.content, headers)


def stored(call: Call) -> Answer:
    """What the store sends of a large file; a signed address on the Hub, so no token is asked for."""
    content = call.hub.blobs.get(call.values["oid"])
    if content is None:
        raise HubError(404, "The specified key does not exist.")
    return send(call, content, {"Accept-Ranges": "bytes", "ETag": f'"{call.values["oid"]}"'})


def send(call: Call, content: bytes, headers: dict[str, str]) -> Answer:
    """All of a file, or the bytes from where the Range header says (`bytes=start-` or `bytes=start-end`)."""
    wanted = call.headers.get("Range")
    if wanted is None:
        return Answer(200, content, headers, content=True)
    first, last = wanted.removeprefix("bytes=").split("-")
    start = int(first) if first else max(len(content) - int(last), 0)
    end = min(int(last), len(content) - 1) if first and last else len(content) - 1
    if start >= len(content):
        raise HubError(416, "Range not satisfiable", **{"Content-Range": f"bytes */{len(content)}"})
    headers = {**headers, "Content-Range": f"bytes {start}-{end}/{len(content)}"}
    return Answer(206, content[start : end + 1], headers, content=True)
