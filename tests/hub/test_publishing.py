"""`publish` with the real client against the loopback Hub: what lands, what travels, what goes wrong and is mended."""

import json

import pytest
from finished_run import COMMAND, KEPT_HERE, PUBLISHED, contents, write_run
from hub_server import HubServer
from huggingface_hub import ModelCard

from hf_robust_ft.reporting.card_sections import BEGIN, END

START = """
import logging, shutil
from pathlib import Path
import hf_robust_ft.hub.retry as patience
from hf_robust_ft.hub import publish
patience.WAITS = (0.01, 0.02, 0.03)

def attempt_publish(repo_id, run="run", **options):
    "Of a commit its id and pull request, or the error; and whether the folder still holds what it held."
    folder = Path(run)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    def call():
        info = publish(folder, repo_id, **options)
        return [info.oid, info.pr_url]
    outcome = attempt(call)
    card = folder / "README.md"
    now = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    evidence = ("README.md", "robustness_report.json")
    outcome["lost"] = [str(path) for path in before if path not in now]
    outcome["changed"] = [str(path) for path in before if now.get(path) != before[path] and path.name not in evidence]
    return outcome
"""

USUAL = (
    START
    + """
found["first"] = attempt_publish("tester/robust", private=True)
found["unchanged"] = attempt_publish("tester/robust")
recipe = Path("run/recipe.yaml")
recipe.write_text(recipe.read_text() + "seed: 0\\n")
found["recipe"] = attempt_publish("tester/robust")
found["bare"] = attempt_publish("bare")
found["pull"] = attempt_publish("tester/open", create_pr=True)
found["no_pull"] = attempt_publish("tester/robust", create_pr=True)
found["branch"] = attempt_publish("tester/open", revision="next")
found["gated"] = attempt_publish("tester/gated")
found["public"] = attempt_publish("tester/open", private=True)
found["sharded"] = attempt_publish("tester/sharded")
for name in ("foreign", "broken", "marks", "index"):
    shutil.copytree("run", name)
    found[name] = attempt_publish(f"tester/{name}", run=name)
readme = Path("foreign/README.md")
found["foreign_local"] = readme.read_text()
readme.write_text(readme.read_text().replace("Read me first.", "Read this first."))
found["foreign_again"] = attempt_publish("tester/foreign", run="foreign")
found["aside"] = Path("foreign/README.local.md").read_text()
found["other_licence"] = attempt_publish("tester/foreign", run="foreign", license="other")
found["licence"] = attempt_publish("tester/foreign", run="foreign", license="mit")
found["unlisted"] = attempt_publish("tester/foreign", run="foreign", license="MIT")
shutil.copytree("run", "rejected")
card = Path("rejected/README.md")
good = card.read_text()
card.write_text(good.replace("license: apache-2.0", "license: Apache 2.0\\nmetrics: accuracy"))
found["rejected"] = attempt_publish("tester/rejected", run="rejected", private=True)
card.write_text(good)
found["corrected"] = attempt_publish("tester/rejected", run="rejected", private=True)
found["readme_of_base"] = Path("run/robustness_report.json").read_text()
"""
)

FOREIGN = """---
license: cc-by-4.0
license_name: ours
tags: [mine, Linf-1-over-255]
model-index:
- name: Theirs
  results:
  - task: {type: image-classification}
    dataset: {name: Beans, type: beans}
    metrics: [{type: accuracy, value: 0.5}]
---

# My model

Read me first.
"""


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    folder = tmp_path_factory.mktemp("usual")
    write_run(folder / "run")
    with HubServer() as hub:
        hub.create("timm/base", {"README.md": "---\nlicense: apache-2.0\n---\n# Base"})
        hub.create("tester/open", {"config.json": "{}", "old.bin": b"theirs"})
        hub.create("tester/gated", {"config.json": "{}"}, gated=True)
        shards = {"model-00001-of-00002.safetensors": b"1", "model.safetensors.index.json": "{}"}
        hub.create("tester/sharded", {**shards, "examples/example_007.png": b"7", "examples/mine.png": b"8"})
        hub.create("tester/foreign", {"README.md": FOREIGN})
        hub.create("tester/broken", {"README.md": "---\nlicense: [mit\n---\n# Mine"})
        hub.create("tester/marks", {"README.md": f"# Mine\n\n{BEGIN}\n\nhalf a section"})
        hub.create("tester/index", {"README.md": "---\nmodel-index: 3\n---\n# Mine"})
        yield hub, hub.run(USUAL, folder, token=hub.token, timeout=300), folder


def test_a_repository_holds_the_checkpoint_and_its_evidence_and_nothing_else(usual):
    hub, found, _ = usual
    repository = hub.find("tester/robust")
    first = repository.commits[found["first"]["value"][0]]
    assert repository.private and set(repository.files(first.sha)) == PUBLISHED
    assert not {name for name in repository.files() if name.endswith((".bin", ".pt")) or "checkpoint" in name}
    assert not any(found[name]["lost"] or found[name]["changed"] for name in ("first", "recipe", "pull", "gated"))


def test_what_lands_says_how_it_was_made_and_measured(usual):
    hub, _, _ = usual
    files = hub.find("tester/robust").files()
    record = json.loads(files["provenance.json"])
    assert record["command"] == COMMAND and record["seeds"] == {"seed": 0} and record["dataset_commit"] == "3" * 40
    assert {"versions", "hardware"} <= set(record)
    text = files["README.md"].decode()
    data = ModelCard(text).data
    assert (data.base_model, data.datasets, data.pipeline_tag) == (
        "timm/base",
        ["someone/colours"],
        "image-classification",
    )
    assert [result.metric_args["samples"] for result in data.eval_results] == [200] * 3
    assert {result.metric_args["protocol"] for result in data.eval_results} == {"paper"}
    for part in ("examples/example_000.png", "--model tester/robust", COMMAND, "not a certificate", "Seeds: seed 0."):
        assert part in text, part
    report = json.loads(files["robustness_report.json"])
    assert report["metadata"]["weights_sha256"] == {"model.safetensors": stored(hub, "model.safetensors").sha256}


def stored(hub, name):
    return hub.find("tester/robust").head.files[name]


def test_the_licence_is_the_base_models_where_it_is_known(usual):
    hub, found, _ = usual
    assert ModelCard(hub.find("tester/robust").files()["README.md"].decode()).data.license == "apache-2.0"
    assert json.loads(found["readme_of_base"])["metadata"]["base_model_license"] == "apache-2.0"


def test_only_what_changed_travels_again(usual):
    hub, found, _ = usual
    repository = hub.find("tester/robust")
    assert found["unchanged"]["value"] == found["first"]["value"]
    assert repository.commits[found["recipe"]["value"][0]].changed == {"recipe.yaml"}
    weights = stored(hub, "model.safetensors")
    sent = [entry for entry in hub.requests("PUT") if entry.received == len(weights.content)]
    assert len(sent) == 1  # for all repositories: the store has it


def test_a_name_alone_is_the_users(usual):
    hub, found, _ = usual
    assert hub.find("tester/bare").head.sha == found["bare"]["value"][0]


def test_pull_requests_and_branches_leave_main_alone(usual):
    hub, found, _ = usual
    repository = hub.find("tester/open")
    sha, url = found["pull"]["value"]
    assert url == f"{hub.url}/tester/open/discussions/1" and repository.resolve("refs/pr/1").sha == sha
    assert set(repository.files("refs/pr/1")) >= PUBLISHED and set(repository.files()) == {"config.json", "old.bin"}
    assert set(repository.files("next")) >= PUBLISHED and repository.resolve("next").sha == found["branch"]["value"][0]
    assert "tester/open also holds pickles that were there before, and were left: old.bin." in found["stderr"]
    assert "has no branch next; it is made from main" in found["stderr"]


def test_a_pull_request_without_a_change_is_not_opened(usual):
    hub, found, _ = usual
    assert found["no_pull"]["value"] == found["recipe"]["value"] and not hub.find("tester/robust").pull_requests
    assert "tester/robust holds all of this already, so no pull request was opened." in found["stderr"]


def test_a_gated_repository_is_published_to(usual):
    hub, found, _ = usual
    assert set(hub.find("tester/gated").files()) >= PUBLISHED and "value" in found["gated"]


def test_a_public_repository_does_not_turn_private_silently(usual):
    _, found, _ = usual
    assert found["public"]["error"] == "ValueError" and "is there and public" in found["public"]["message"]


def test_weights_of_an_earlier_publication_do_not_stay_beside_the_new(usual):
    hub, _, _ = usual
    assert set(hub.find("tester/sharded").files()) == PUBLISHED | {"examples/mine.png"}


def test_somebodys_own_card_is_kept_around_our_section(usual):
    hub, found, _ = usual
    repository = hub.find("tester/foreign")
    text = repository.files(found["foreign"]["value"][0])["README.md"].decode()
    assert text == found["foreign_local"]
    assert "# My model\n\nRead me first.\n\n" + BEGIN in text and text.rstrip().endswith(END)
    data = ModelCard(text).data
    assert data.license == "cc-by-4.0" and {"mine", "hf_robust_ft", "Linf-8-over-255"} <= set(data.tags)
    assert "Linf-1-over-255" not in data.tags
    values = {(result.dataset_type, result.metric_type): result.metric_value for result in data.eval_results}
    assert values["beans", "accuracy"] == 0.5 and values["someone/colours", "adversarial_accuracy"] == 0.5
    assert "states the licence cc-by-4.0, which is kept, though it is apache-2.0 here;" in found["stderr"]
    assert "README.md of tester/foreign has text that is not ours; it is kept around our section." in found["stderr"]


def test_of_two_texts_the_published_one_is_kept_and_the_local_one_set_aside(usual):
    hub, found, _ = usual
    assert found["foreign_again"]["value"] == found["foreign"]["value"]  # our section did not change
    assert "Read this first." in found["aside"] and "Read me first." not in found["aside"]
    text = hub.find("tester/foreign").files()["README.md"].decode()
    assert "Read me first." in text and text.count(BEGIN) == 1
    for asked, name in (("other", "ours"), ("mit", None)):
        sha = found["licence" if asked == "mit" else "other_licence"]["value"][0]
        data = ModelCard(hub.find("tester/foreign").files(sha)["README.md"].decode()).data
        assert (data.license, data.license_name) == (asked, name)


def test_a_licence_that_the_hub_does_not_list_is_told_here(usual):
    _, found, _ = usual
    assert found["unlisted"]["error"] == "ValueError" and "Did you mean 'mit'" in found["unlisted"]["message"]


def test_a_card_that_the_hub_rejects_is_told_in_one_line_before_anything_is_sent(usual):
    hub, found, _ = usual
    outcome = found["rejected"]
    assert outcome["error"] == "PublishError" and not outcome["lost"] and not outcome["changed"]
    assert "does not take the metadata at the head of rejected/README.md: " in outcome["message"]
    assert '"metrics" must be' in outcome["message"] and '; "license" must be one of' in outcome["message"]
    command = "hf-robust-ft publish rejected tester/rejected --private"
    assert outcome["message"].endswith(f"Go on with: {command}") and "\n" not in outcome["message"]
    assert len(hub.requests("POST", "tester/rejected/commit/")) == 1  # of the corrected card
    assert hub.find("tester/rejected").head.sha == found["corrected"]["value"][0]


@pytest.mark.parametrize(
    ("name", "reason"), [("broken", "cannot be read"), ("marks", "do not pair up"), ("index", "as the Hub wants it")]
)
def test_a_card_that_cannot_be_added_to_is_left_alone(usual, name, reason):
    hub, found, _ = usual
    assert found[name]["error"] == "ValueError" and reason in found[name]["message"]
    assert f"The README.md in tester/{name} is kept" in found[name]["message"]
    assert set(hub.find(f"tester/{name}").files()) == {"README.md"} and not found[name]["lost"]


RELOAD = """
import sys
from transformers import AutoModelForImageClassification, pipeline
from PIL import Image
model = AutoModelForImageClassification.from_pretrained("tester/robust")
found["sum"] = sum(weight.sum().item() for weight in model.parameters())
classify = pipeline("image-classification", "tester/robust")
found["labels"] = sorted(each["label"] for each in classify(Image.new("RGB", (20, 16))))
found["alone"] = not any(name.split(".")[0] == "hf_robust_ft" for name in sys.modules)
"""


def test_a_clean_process_loads_it_with_transformers_alone(usual, tmp_path):
    from transformers import AutoModelForImageClassification

    hub, _, folder = usual
    found = hub.run(RELOAD, tmp_path, token=hub.token)
    ours = AutoModelForImageClassification.from_pretrained(folder / "run")
    assert found["sum"] == pytest.approx(sum(weight.sum().item() for weight in ours.parameters()), rel=1e-6)
    assert found["labels"] == ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"] and found["alone"]


FAULTY = """
for name in names:
    found[name] = attempt_publish(f"tester/{name}", run=name, license="mit", create_pr=name == "pull_lost")
from hf_robust_ft.cli.main import main
found["resumed"] = attempt(main, ["publish", "commit_down", "tester/commit_down"])
"""
MENDED = (
    *("create_500", "info_500", "yaml_503", "preupload_500", "put_500", "cut", "damaged", "commit_500", "drop"),
    *("answer_lost", "pull_lost", "other_sha"),
)
FATAL = ("damaged_for_good", "store_lies", "commit_down", "commit_403")


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faulty")
    for seed, name in enumerate((*MENDED, *FATAL)):
        write_run(folder / name, seed)  # other weights each, or the store would have them already
    body = START + f"names = {[*MENDED, *FATAL]}" + FAULTY
    with HubServer() as hub:
        hub.fail("api/repos/create", method="POST")
        hub.fail("api/models/tester/info_500$", method="GET")
        hub.fail("validate-yaml", status=503, times=2)
        hub.fail("tester/preupload_500/preupload")
        hub.fail("store/tester/put_500", method="PUT")
        hub.fail("store/tester/cut", "cut_upload")
        hub.fail("store/tester/damaged/", "corrupt_upload")
        hub.fail("tester/commit_500/commit/", method="POST")
        hub.fail("tester/answer_lost/commit/", "lose_answer", method="POST")
        hub.fail("tester/pull_lost/commit/", "lose_answer", method="POST")
        hub.fail("tester/other_sha/commit/", "other_sha")
        hub.fail("tester/drop/commit/", "drop", method="POST")
        hub.fail("store/tester/damaged_for_good/", "corrupt_upload", times=3)
        hub.fail("tester/store_lies/model.safetensors", "damage")
        down = hub.fail("tester/commit_down/commit/", method="POST", times=4)
        hub.fail("tester/commit_403/commit/", method="POST", status=403)
        yield hub, hub.run(body, folder, token=hub.token, timeout=300), folder, down


@pytest.mark.parametrize("name", MENDED)
def test_what_passes_is_mended(faulty, name):
    hub, found, folder, _ = faulty
    assert "value" in found[name], found[name]
    repository = hub.find(f"tester/{name}")
    sha = found[name]["value"][0]
    assert set(repository.files(sha)) == PUBLISHED
    assert repository.files(sha)["model.safetensors"] == (folder / name / "model.safetensors").read_bytes()


def test_a_lost_answer_makes_no_second_commit(faulty):
    hub, found, _, _ = faulty
    assert [commit.title for commit in hub.find("tester/answer_lost").commits.values()] == [
        "initial commit",
        "Publish with its robustness report",
    ]
    assert list(hub.find("tester/pull_lost").pull_requests) == ["refs/pr/1"]
    assert found["pull_lost"]["value"][1] == f"{hub.url}/tester/pull_lost/discussions/1"


def test_a_wrong_commit_id_is_looked_up(faulty):
    hub, found, _, _ = faulty
    assert found["other_sha"]["value"][0] == hub.find("tester/other_sha").head.sha
    assert "says it made commit 0000" in found["stderr"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("damaged_for_good", "does not match its sha256"),
        ("store_lies", "model.safetensors has sha256 "),
        ("commit_down", "the Hub answered 500"),
        ("commit_403", "this token may not write there"),
    ],
)
def test_what_does_not_pass_costs_nothing_and_says_how_to_go_on(faulty, name, reason):
    _, found, folder, _ = faulty
    assert found[name]["error"] == "PublishError" and reason in found[name]["message"], found[name]
    assert found[name]["message"].endswith(f"Go on with: hf-robust-ft publish {name} tester/{name} --license mit")
    assert "\n" not in found[name]["message"]
    assert not found[name]["lost"] and not found[name]["changed"]
    assert set(contents(folder / name)) >= PUBLISHED | KEPT_HERE


def test_the_command_goes_on(faulty):
    hub, found, _, down = faulty
    assert down.times == 0 and "value" in found["resumed"], found["resumed"]
    assert set(hub.find("tester/commit_down").files()) == PUBLISHED


REFUSED = {
    ("hf_nobody_knows", "tester/new"): "does not accept the token (Invalid credentials",
    ("hf_reads_only", "tester/new"): "this token may not write there",
    ("hf_stranger", "tester/there"): "this token may not write there",
    (None, "tester/new"): "there is no token: run `hf auth login` or set HF_TOKEN",
    (None, "new"): "there is no token: run `hf auth login` or set HF_TOKEN",
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refused")
    write_run(folder / "run")
    calls = "\n".join(
        f"found['{token} {repo_id}'] = attempt_publish({repo_id!r}, token={token!r})" for token, repo_id in REFUSED
    )
    with HubServer() as hub:
        hub.users["hf_reads_only"] = hub.users[hub.reading_token]
        hub.create("tester/there", {"config.json": "{}"})
        yield hub, hub.run(START + calls, folder, timeout=300)


@pytest.mark.parametrize(("token", "repo_id"), REFUSED)
def test_whoever_may_not_write_is_told_before_anything_is_sent(refused, token, repo_id):
    hub, found = refused
    outcome = found[f"{token} {repo_id}"]
    assert outcome["error"] == "PublishError" and REFUSED[token, repo_id] in outcome["message"], outcome
    assert token is None or token not in outcome["message"] + found["stderr"]
    assert "Go on with: hf-robust-ft publish run" in outcome["message"] and "\n" not in outcome["message"]
    assert not hub.requests("PUT") and not outcome["lost"]
