"""The loopback Hub against the real huggingface_hub client: creating repositories, uploading, and what goes wrong."""

import pytest
from hub_server import HubServer

FOLDER = """
from pathlib import Path
from huggingface_hub import HfApi, create_branch, create_commit, create_repo, create_tag, delete_repo
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, hf_hub_download, upload_file, upload_folder

api = HfApi()
folder = Path("folder")
(folder / "sub").mkdir(parents=True)
(folder / "README.md").write_text("---\\nlicense: mit\\n---\\n# Card")
(folder / "sub" / "curve.json").write_text("[1]")
(folder / "model.safetensors").write_bytes(b"w" * 4096)

def upload(repo_id, **options):
    return upload_folder(repo_id=repo_id, folder_path=folder, **options).oid
"""
PUBLISH = (
    FOLDER
    + """
found["url"] = create_repo("tester/new", private=True)
found["again"] = attempt(create_repo, "tester/new")
found["exists"] = create_repo("tester/new", exist_ok=True)
found["foreign"] = attempt(create_repo, "someone/new")
found["first"] = upload("tester/new")
(folder / "sub" / "curve.json").write_text("[1, 2]")
found["second"] = upload("tester/new")
found["unchanged"] = upload("tester/new")
with open(hf_hub_download("tester/new", "model.safetensors"), "rb") as file:
    found["reloaded"] = len(file.read())
create_tag("tester/new", tag="v1", revision=found["first"])
found["tag"] = api.model_info("tester/new", revision="v1").sha
create_branch("tester/new", branch="next")
found["on_branch"] = upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="tester/new", revision="next").oid
pull = upload_file(path_or_fileobj=b"y" * 9, path_in_repo="y.bin", repo_id="tester/new", create_pr=True)
found["pull"] = [pull.oid, pull.pr_num, pull.pr_revision, pull.pr_url]
refs = api.list_repo_refs("tester/new", include_pull_requests=True)
found["refs"] = [[ref.ref, ref.target_commit] for ref in refs.branches + refs.pull_requests + refs.tags]
operations = [CommitOperationDelete("sub/"), CommitOperationAdd("z.txt", b"z")]
found["stale"] = attempt(create_commit, "tester/new", operations, commit_message="m", parent_commit=found["first"])
operations = [CommitOperationDelete("sub/"), CommitOperationAdd("z.txt", b"z")]
found["delete"] = create_commit("tester/new", operations, commit_message="Tidy", parent_commit=found["second"]).oid
found["titles"] = [commit.title for commit in api.list_repo_commits("tester/new")]
found["no_such_file"] = attempt(
    create_commit, "tester/new", [CommitOperationDelete("none.txt")], commit_message="m"
)
(folder / "README.md").write_text("---\\nlicense: [mit\\n---")
found["bad_yaml"] = attempt(upload, "tester/new")
(folder / "README.md").write_text("---\\nmodel-index: [{name: m, results: [{task: {type: t}}]}]\\n---")
found["bad_index"] = attempt(upload, "tester/new")
create_repo("tester/data", repo_type="dataset")
found["dataset"] = upload_file(
    path_or_fileobj=b"1", path_in_repo="a.parquet", repo_id="tester/data", repo_type="dataset"
).oid
create_repo("tester/old")
delete_repo("tester/old")
found["deleted"] = attempt(api.model_info, "tester/old")
"""
)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    with HubServer() as hub:
        yield hub, hub.run(PUBLISH, tmp_path_factory.mktemp("publish"), token=hub.token)


def test_repositories_are_created_once_and_in_ones_own_name(published):
    hub, found = published
    assert found["url"] == found["exists"] == f"{hub.url}/tester/new" and hub.find("tester/new").private
    assert "409" in found["again"]["message"] and "403" in found["foreign"]["message"]
    assert "404" in found["deleted"]["message"] and hub.find("tester/old") is None
    assert hub.find("tester/data", "dataset").head.sha == found["dataset"]


def test_second_push_carries_only_what_changed(published):
    hub, found = published
    repository = hub.find("tester/new")
    first, second = repository.commits[found["first"]], repository.commits[found["second"]]
    assert first.changed == {"README.md", "sub/curve.json", "model.safetensors"}
    assert second.changed == {"sub/curve.json"} and second.parent is first
    assert found["unchanged"] == found["second"]
    weights = [entry for entry in hub.requests("PUT") if entry.received == 4096]
    assert len(weights) == 1 and not weights[0].authorized
    assert found["reloaded"] == 4096
    assert repository.files(found["second"])["sub/curve.json"] == b"[1, 2]"


def test_tags_branches_and_pull_requests_leave_main_alone(published):
    hub, found = published
    repository = hub.find("tester/new")
    assert found["tag"] == found["first"] and repository.resolve("next").sha == found["on_branch"]
    sha, number, revision, url = found["pull"]
    assert (number, revision) == (1, "refs/pr/1") and url == f"{hub.url}/tester/new/discussions/1"
    assert repository.files("refs/pr/1")["y.bin"] == b"y" * 9 and "y.bin" not in repository.files()
    told = {"refs/heads/main": found["second"], "refs/heads/next": found["on_branch"]}
    assert dict(found["refs"]) == told | {"refs/pr/1": sha, "refs/tags/v1": found["first"]}


def test_commits_delete_and_notice_each_other(published):
    hub, found = published
    assert "412" in found["stale"]["message"]
    repository = hub.find("tester/new")
    assert repository.head.sha == found["delete"]
    assert set(repository.files()) == {"README.md", "model.safetensors", "z.txt"}
    assert found["titles"][0] == "Tidy" and found["titles"][-1] == "initial commit"
    assert found["no_such_file"]["error"] == "RemoteEntryNotFoundError"


def test_cards_with_bad_metadata_are_refused(published):
    _, found = published
    assert found["bad_yaml"]["error"] == found["bad_index"]["error"] == "ValueError"
    assert "bad YAML" in found["bad_yaml"]["message"]
    assert "results[0].dataset.name" in found["bad_index"]["message"]


FAULTY = (
    FOLDER
    + """
for name in ("put_500", "cut", "damaged", "commit_500", "other_sha"):
    create_repo(f"tester/{name}")
    (folder / "model.safetensors").write_bytes(name.encode() * 100000)
    found[name] = attempt(upload, f"tester/{name}")
(folder / "model.safetensors").write_bytes(b"damaged" * 100000)
found["repeated"] = attempt(upload, "tester/damaged")
found["head"] = api.model_info("tester/other_sha").sha
"""
)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    with HubServer() as hub:
        hub.fail("store/tester/put_500", method="PUT")
        hub.fail("store/tester/cut", "cut_upload")
        hub.fail("store/tester/damaged", "corrupt_upload")
        hub.fail("tester/commit_500/commit", method="POST")
        hub.fail("tester/other_sha/commit", "other_sha")
        yield hub, hub.run(FAULTY, tmp_path_factory.mktemp("faulty"), token=hub.token)


def test_client_repeats_a_failed_upload(faulty):
    hub, found = faulty
    for name in ("put_500", "cut"):
        assert found[name] == {"value": hub.find(f"tester/{name}").head.sha}
        assert hub.find(f"tester/{name}").files()["model.safetensors"] == name.encode() * 100000
    assert [entry.status for entry in hub.requests("PUT", "tester/put_500")] == [500, 200]
    assert [entry.status for entry in hub.requests("PUT", "tester/cut")] == [0, 200]


def test_damaged_upload_is_noticed_and_can_be_repeated(faulty):
    hub, found = faulty
    assert found["damaged"]["error"] == "RuntimeError" and "BadRequestError" in found["damaged"]["causes"]
    assert found["repeated"] == {"value": hub.find("tester/damaged").head.sha}
    assert hub.find("tester/damaged").files()["model.safetensors"] == b"damaged" * 100000


def test_client_does_not_repeat_a_failed_commit(faulty):
    hub, found = faulty
    assert "500" in found["commit_500"]["message"] and not hub.find("tester/commit_500").files()
    assert len(hub.requests("POST", "tester/commit_500/commit")) == 1


def test_client_believes_a_wrong_sha_that_the_head_contradicts(faulty):
    """Why publishing has to compare the answer with the branch's head."""
    hub, found = faulty
    assert found["other_sha"] == {"value": "0" * 40}
    assert found["head"] == hub.find("tester/other_sha").head.sha != "0" * 40


@pytest.mark.parametrize("token", ["reading_token", "other_token", None])
def test_uploading_takes_a_token_that_may_write(published, tmp_path, token):
    hub, _ = published
    before = hub.find("tester/data", "dataset").head
    body = "from huggingface_hub import upload_file\nfile = {'path_or_fileobj': b'1', 'path_in_repo': 'b.txt'}\n"
    body += "found['upload'] = attempt(upload_file, **file, repo_id='tester/data', repo_type='dataset')"
    found = hub.run(body, tmp_path, token=token and getattr(hub, token))
    assert found["upload"]["error"] in ("HfHubHTTPError", "RepositoryNotFoundError")
    assert ("401" if token is None else "403") in found["upload"]["message"]
    assert hub.find("tester/data", "dataset").head is before
