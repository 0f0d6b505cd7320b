"""The endpoints that change: repositories, branches and tags, card validation, large-file upload, commits."""

import base64
import hashlib
import json

import yaml

from hf_robust_ft.reporting.licences import HUB_LICENCES
from loopback_hub.exchange import URL_PREFIX, Answer, Call, HubError, find_commit, find_repository
from loopback_hub.faults import corrupted
from loopback_hub.repositories import Repository, StoredFile, is_large


def create_repository(call: Call) -> Answer:
    """409 for a repository that exists tells its url too: with `exist_ok` the client takes that as the answer."""
    wanted = call.json()
    if call.user is None:
        raise HubError(401, "Invalid username or password.")
    owner, kind = wanted.get("organization") or call.user.name, wanted.get("type") or "model"
    if owner != call.user.name or call.user.role != "write":
        raise HubError(403, f'You don\'t have the rights to create a {kind} under the namespace "{owner}"')
    repo_id = f"{owner}/{wanted['name']}"
    address = {"url": f"{call.hub.url}/{URL_PREFIX[kind]}{repo_id}", "name": repo_id, "id": repo_id}
    if call.hub.find(repo_id, kind):
        return Answer.of({"error": f"You already created this {kind} repo", **address}, 409)
    private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
    call.hub.add(Repository(repo_id, kind, private=private))
    return Answer.of(address)


def delete_repository(call: Call) -> Answer:
    wanted = call.json()
    owner = wanted.get("organization") or (call.user.name if call.user else "")
    call.values.update(repo_id=f"{owner}/{wanted['name']}", kind=wanted.get("type") or "model")
    call.hub.remove(find_repository(call, write=True))
    return Answer.of({})


def create_branch(call: Call) -> Answer:
    repository = find_repository(call, write=True)
    name = call.values["name"]
    if name in repository.branches:
        raise HubError(409, f"Reference {name} already exists")
    call.values["revision"] = (call.json() if call.body else {}).get("startingPoint") or "main"
    repository.branches[name] = find_commit(call, repository)
    return Answer.of({})


def create_tag(call: Call) -> Answer:
    repository = find_repository(call, write=True)
    name = call.json()["tag"]
    if name in repository.tags:
        raise HubError(409, f"Tag {name} already exists")
    repository.tags[name] = find_commit(call, repository)
    return Answer.of({})


def validate_card(call: Call) -> Answer:
    """The YAML at the head of a README: readable, a mapping, a listed licence, complete results in a model-index."""
    content = call.json()["content"]
    if not content.startswith("---"):
        return Answer.of({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
    try:
        card = yaml.safe_load(content.split("---")[1])
    except yaml.YAMLError as error:
        return Answer.of({"errors": [{"message": f"bad YAML: {error}"}], "warnings": []}, 400)
    errors = card_errors(card)
    return Answer.of({"errors": [{"message": text} for text in errors], "warnings": []}, 400 if errors else 200)


def card_errors(card: object) -> list[str]:
    if not isinstance(card, dict):
        return ["metadata must be an object"]
    errors = []
    for key, kinds in (("license", str), ("tags", list), ("datasets", (list, str)), ("metrics", list)):
        if key in card and not isinstance(card[key], kinds):
            errors.append(f'"{key}" must be {kinds}')
    if isinstance(card.get("license"), str) and card["license"] not in HUB_LICENCES:
        errors.append('"license" must be one of [apache-2.0, mit, ...]')
    for number, entry in enumerate(card.get("model-index") or []):
        place = f'"model-index[{number}]'
        errors += [f'{place}.{key}" is required' for key in ("name", "results") if key not in entry]
        for position, result in enumerate(entry.get("results", [])):
            metrics = result.get("metrics") or [{}]
            present = {f"{part}.{key}" for part in ("task", "dataset") for key in result.get(part, {})}
            present |= {f"metrics.{key}" for key in set.intersection(*map(set, metrics))}
            needed = ("task.type", "dataset.name", "dataset.type", "metrics.type", "metrics.value")
            errors += [f'{place}.results[{position}].{key}" is required' for key in needed if key not in present]
    return errors


def check_revision(call: Call, repository: Repository) -> None:
    """A revision that does not exist is an error; so is a commit's sha, which nothing can be put upon."""
    find_commit(call, repository)
    if call.values["revision"] not in repository.branches:
        raise HubError(400, f"Cannot commit to {call.values['revision']}: it is not a branch.")


def wants_pull_request(call: Call) -> bool:
    return call.asks("create_pr")


def preupload(call: Call) -> Answer:
    """Which files go as LFS, and the ids of those there already, by which the client leaves out unchanged ones."""
    repository = find_repository(call, write=not wants_pull_request(call))
    files = find_commit(call, repository).files
    told = []
    for wanted in call.json()["files"]:
        path, sample = wanted["path"], base64.b64decode(wanted["sample"])
        mode = "lfs" if is_large(path, sample) else "regular"
        entry = {"path": path, "uploadMode": mode, "shouldIgnore": False}
        if path in files:
            entry["oid"] = files[path].etag
        told.append(entry)
    return Answer.of({"files": told})


def large_file_batch(call: Call) -> Answer:
    """Where to PUT each file; a file whose content the store has needs no upload, and gets no `actions`."""
    repository = find_repository(call, write="ref" in call.json())
    objects = []
    for wanted in call.json()["objects"]:
        entry = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] not in call.hub.blobs:
            verify = f"{call.hub.url}/{call.values['prefix'] or ''}{repository.repo_id}.git/info/lfs/verify"
            entry["actions"] = {
                "upload": {"href": f"{call.hub.store_url}/store/{repository.repo_id}/{wanted['oid']}"},
                "verify": {"href": verify, "header": {}},
            }
        objects.append(entry)
    return Answer.of({"transfer": "basic", "objects": objects})


def store_large_file(call: Call) -> Answer:
    """Store what arrives under the name that was asked for, right or wrong, as a plain object store does."""
    call.hub.blobs[call.values["oid"]] = call.body
    return Answer(200, b"", {"ETag": f'"{hashlib.md5(call.body).hexdigest()}"'})


def verify_large_file(call: Call) -> Answer:
    find_repository(call)
    wanted = call.json()
    content = call.hub.blobs.get(wanted["oid"])
    if content is None or len(content) != wanted["size"] or hashlib.sha256(content).hexdigest() != wanted["oid"]:
        call.hub.blobs.pop(wanted["oid"], None)
        raise HubError(400, f"The uploaded file does not match its sha256 {wanted['oid']}: upload it again.")
    return Answer.of({"message": "ok"})


def commit(call: Call) -> Answer:
    """A header line and one line an operation (ndjson); with `create_pr`, on a new branch refs/pr/<number>."""
    as_pull_request = wants_pull_request(call)
    repository = find_repository(call, write=not as_pull_request)
    if call.user is None:
        raise HubError(401, "Invalid username or password.")
    if not as_pull_request:
        check_revision(call, repository)
    base = find_commit(call, repository)
    lines = [json.loads(line) for line in call.body.decode().splitlines()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    if header.get("parentCommit") not in (None, base.sha):
        raise HubError(412, "A commit has happened since. Please refresh and try again.")
    files, delete = committed_files(call, lines)
    for path in delete:
        if not any(name == path or name.startswith(path + "/") for name in base.files):
            raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
    branch = call.values["revision"]
    if as_pull_request:
        branch = f"refs/pr/{len(repository.pull_requests) + 1}"
    made = repository.commit(
        files,
        delete=delete,
        branch=branch,
        onto=base,
        title=header["summary"],
        description=header.get("description", ""),
        author=call.user.name,
    )
    call.hub.keep_blobs(repository)
    page = f"{call.hub.url}/{URL_PREFIX[repository.kind]}{repository.repo_id}"
    answer = {"success": True, "commitOid": made.sha, "commitUrl": f"{page}/commit/{made.sha}", "hookOutput": ""}
    if as_pull_request:
        answer["pullRequestUrl"] = f"{page}/discussions/{branch.removeprefix('refs/pr/')}"
    return Answer.of(answer)


def committed_files(call: Call, lines: list[dict]) -> tuple[dict[str, StoredFile], tuple[str, ...]]:
    files, delete = {}, []
    for line in lines:
        value = line["value"]
        if line["key"] == "file":
            files[value["path"]] = StoredFile(base64.b64decode(value["content"]), large=False)
        elif line["key"] == "lfsFile":
            content = call.hub.blobs.get(value["oid"])
            if content is None:
                raise HubError(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
            files[value["path"]] = StoredFile(content, large=True)
        elif line["key"] in ("deletedFile", "deletedFolder"):
            delete.append(value["path"].rstrip("/"))
    for path, file in files.items():
        if call.hub.next_fault("store", call.method, f"{call.values['repo_id']}/{path}"):
            files[path] = StoredFile(corrupted(file.content), file.large)
    return files, tuple(delete)
