"""The loopback Hub against the real huggingface_hub client: what it downloads, what it refuses, what it mends."""

import http.client
from urllib.parse import urlsplit

import pytest
from hub_server import HubServer

LARGE = bytes(range(256)) * 48000  # more than one of the client's chunks of 10 MB


@pytest.fixture(scope="module")
def hub():
    with HubServer(page_size=2) as server:
        server.create(
            "someone/model", {"config.json": "{}", "sub/a.txt": "a", "sub/b.txt": "b", "w.safetensors": b"w" * 9}
        )
        server.create("someone/pinned", {"config.json": "old"}, kind="dataset", sha="5" * 40)
        server.find("someone/pinned", "dataset").commit({"config.json": "new"})
        server.create("someone/gated", {"config.json": "{}", "w.bin": b"1"}, gated=True, readers={"tester"})
        server.create("tester/private", {"config.json": "{}"}, private=True)
        yield server


READ = """
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
api = HfApi()

def text(*args, **options):
    with open(hf_hub_download(*args, **options)) as file:
        return file.read()

found["tree"] = [entry.path for entry in api.list_repo_tree("someone/model", recursive=True)]
found["folder"] = [entry.path for entry in api.list_repo_tree("someone/model", "sub")]
found["snapshot"] = sorted(os.listdir(snapshot_download("someone/model", ignore_patterns=".git*")))
found["sha"] = api.model_info("someone/model").sha
sizes = api.model_info("someone/model", files_metadata=True).siblings
found["sizes"] = {entry.rfilename: [entry.size, entry.lfs is not None] for entry in sizes}
info = api.get_paths_info("someone/model", ["sub", "w.safetensors", "none"])
found["paths"] = [[entry.path, type(entry).__name__] for entry in info]
found["commits"] = [commit.title for commit in api.list_repo_commits("someone/model")]
found["branches"] = [branch.name for branch in api.list_repo_refs("someone/model").branches]
found["old"] = text("someone/pinned", "config.json", repo_type="dataset", revision="5" * 40)
found["new"] = text("someone/pinned", "config.json", repo_type="dataset")
found["file"] = attempt(hf_hub_download, "someone/model", "none.json")
found["revision"] = attempt(hf_hub_download, "someone/model", "config.json", revision="v9")
found["repository"] = attempt(hf_hub_download, "someone/none", "config.json")
found["private"] = attempt(text, "tester/private", "config.json")
found["gated"] = attempt(text, "someone/gated", "config.json")
found["name"] = attempt(lambda: api.whoami()["name"])
"""


@pytest.fixture(scope="module")
def member(hub, tmp_path_factory):
    return hub.run(READ, tmp_path_factory.mktemp("member"), token=hub.token)


@pytest.fixture(scope="module")
def nobody(hub, tmp_path_factory):
    return hub.run(READ, tmp_path_factory.mktemp("nobody"))


def test_repository_is_told_page_by_page(hub, member):
    files = [".gitattributes", "config.json", "sub", "sub/a.txt", "sub/b.txt", "w.safetensors"]
    assert member["tree"] == files
    assert member["folder"] == ["sub/a.txt", "sub/b.txt"]
    assert member["snapshot"] == ["config.json", "sub", "w.safetensors"]
    assert member["paths"] == [["sub", "RepoFolder"], ["w.safetensors", "RepoFile"]]
    assert member["sizes"]["w.safetensors"] == [9, True] and member["sizes"]["config.json"] == [2, False]
    assert member["sha"] == hub.find("someone/model").head.sha
    assert member["commits"] == ["Upload", "initial commit"] and member["branches"] == ["main"]


def test_pinned_commit_is_served_as_it_was(member):
    assert (member["old"], member["new"]) == ("old", "new")


def test_token_goes_to_the_hub_and_not_to_the_file_store(hub, member, nobody):
    sent = {entry.authorized for entry in hub.requests("GET", "/resolve/main/config.json")}
    assert sent == {True, False}
    assert not any(entry.authorized for entry in hub.requests(part="/store/"))


def test_what_is_not_there_is_told_apart(member, nobody):
    for found in (member, nobody):
        assert found["file"]["error"] == "RemoteEntryNotFoundError"
        assert found["revision"]["error"] == "RevisionNotFoundError"
        assert found["repository"]["error"] == "RepositoryNotFoundError"


def test_private_and_gated_repositories_ask_for_a_token(hub, member, nobody, tmp_path):
    assert member["private"] == {"value": "{}"} and member["gated"] == {"value": "{}"}
    assert nobody["private"]["error"] == "RepositoryNotFoundError" and "401" in nobody["private"]["message"]
    assert nobody["gated"]["error"] == "GatedRepoError" and "401" in nobody["gated"]["message"]
    assert member["name"] == {"value": "tester"} and nobody["name"]["error"] == "LocalTokenNotFoundError"
    stranger = hub.run(READ, tmp_path, token=hub.other_token)
    assert stranger["private"]["error"] == "RepositoryNotFoundError" and "404" in stranger["private"]["message"]
    assert stranger["gated"]["error"] == "GatedRepoError" and "ask for access" in stranger["gated"]["message"]


def test_unknown_token_is_refused(hub, tmp_path):
    found = hub.run("from huggingface_hub import whoami\nfound['who'] = attempt(whoami)", tmp_path, token="hf_nobody")
    assert found["who"]["error"] == "HfHubHTTPError" and "token" in found["who"]["message"]


FAULTY = """
from huggingface_hub import HfApi, hf_hub_download

def same(name):
    path = hf_hub_download(f"faulty/{name}", "w.safetensors")
    with open(path, "rb") as file:
        return file.read() == bytes(range(256)) * 48000

for name in ("head_500", "get_500", "cut", "drop", "shorten", "corrupt"):
    found[name] = attempt(same, name)
found["mismatches"] = [entry["path"] for entry in HfApi().verify_repo_checksums("faulty/corrupt").mismatches]
from hf_robust_ft.provenance.downloads import verify_download
found["verified"] = attempt(verify_download, "faulty/cut")
found["damaged"] = attempt(verify_download, "faulty/corrupt")
found["unanswered"] = attempt(verify_download, "faulty/drop")
found["uncached"] = attempt(verify_download, "faulty/never_loaded")
hf_hub_download("faulty/corrupt", "w.safetensors", force_download=True)
found["mended"] = attempt(verify_download, "faulty/corrupt")
"""


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    with HubServer() as server:
        for name in ("head_500", "get_500", "cut", "drop", "shorten", "corrupt"):
            server.create(f"faulty/{name}", {"w.safetensors": LARGE})
        server.fail("faulty/head_500/resolve", method="HEAD")
        server.fail("store/faulty/get_500")
        server.fail("store/faulty/drop", "drop")
        server.fail("faulty/cut/", "cut", keep=0.9)
        server.fail("faulty/shorten/", "shorten")
        server.fail("faulty/corrupt/", "corrupt")
        server.fail("api/models/faulty/drop/tree", status=403)
        yield server, server.run(FAULTY, tmp_path_factory.mktemp("faulty"))


def test_client_mends_lost_connections_and_a_failing_head(faulty):
    server, found = faulty
    assert found["head_500"] == found["drop"] == found["cut"] == {"value": True}
    assert [entry.status for entry in server.requests("HEAD", "faulty/head_500")] == [500, 302]
    first, second = server.requests("GET", "store/faulty/cut")
    assert first.status == 200 and first.sent < len(LARGE)
    assert second.status == 206 and second.range == f"bytes={len(LARGE) - second.sent}-"


def test_client_reports_a_failing_get_and_a_short_file(faulty):
    _, found = faulty
    assert found["get_500"]["error"] == "HfHubHTTPError" and "500" in found["get_500"]["message"]
    assert found["shorten"]["error"] == "OSError" and "Consistency check failed" in found["shorten"]["message"]


def test_damaged_bytes_pass_the_client_and_not_verify_download(faulty):
    _, found = faulty
    assert found["corrupt"] == {"value": False}
    assert found["mismatches"] == ["w.safetensors"]
    assert found["damaged"]["error"] == "ValueError" and "w.safetensors" in found["damaged"]["message"]
    assert "force_download=True" in found["damaged"]["message"]
    assert found["verified"] == found["mended"] == {"value": 1} and found["uncached"] == {"value": 0}
    assert found["unanswered"] == {"value": 0} and "could not be compared" in found["stderr"]


@pytest.mark.parametrize(
    ("wanted", "status", "expected"),
    [("bytes=2-4", 206, b"234"), ("bytes=7-", 206, b"789"), ("bytes=-2", 206, b"89"), ("bytes=10-", 416, None)],
)
def test_ranges(hub, wanted, status, expected):
    hub.create("someone/ranges", {"digits.txt": "0123456789"})
    connection = http.client.HTTPConnection(urlsplit(hub.url).netloc)
    connection.request("GET", "/someone/ranges/resolve/main/digits.txt", headers={"Range": wanted})
    answer = connection.getresponse()
    assert answer.status == status and (expected is None or answer.read() == expected)
    connection.close()


@pytest.mark.parametrize(("kind", "options"), [("burn", {}), ("cut", {"keep": 1.0})])
def test_unknown_faults_are_refused(hub, kind, options):
    with pytest.raises(ValueError, match=r"(kind|keep) must be"):
        hub.fail("/", kind, **options)
