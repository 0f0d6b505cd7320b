"""`load_image_dataset` through the real clients: the paper's five datasets, and a Hub that fails.

Whatever goes wrong, it ends in a message or in all images, never in fewer.
"""

import pyarrow as pa
import pytest
from hub_server import HubServer
from loopback_hub.replicas import REPLICAS, Replica, parquet, replica_files, table

from hf_robust_ft.data.specs import SPECS

SMALL = Replica(
    "faulty/small", {"label": ("birds", 4)}, {"train": 400, "test": 100}, {"train": 2, "test": 2}, classes=4
)
SHARD = "data/train-00000-of-00002.parquet"
FAULTY = ("gated", "private", "nowhere", "head_500", "get_500", "cut", "shorten", "corrupt", "swapped", "shard", "bare")
STREAMED = ("stream_cut", "stream_500", "stream_shorten")

SCRIPT = """
from collections import Counter
from dataclasses import replace
from hf_robust_ft import load_image_dataset
from hf_robust_ft.data import loading
from hf_robust_ft.data.streaming import Streaming

def counts(dataset_id, **options):
    splits = load_image_dataset(dataset_id, **options)
    return {{name: len(split) for name, split in splits.items()}}

def paper(alias):
    splits = load_image_dataset(alias)
    train = splits["train"]
    names = train.features["label"].names
    a_class = Counter(train.with_format("arrow", columns=["label"])[:]["label"].to_pylist())
    return {{
        "sizes": {{name: len(split) for name, split in splits.items()}},
        "columns": train.column_names,
        "names": names,
        "modes": sorted({{train[index]["image"].mode for index in range(8)}}),
        "fewest": min(a_class[index] for index in range(len(names))),
        "most": max(a_class.values()),
        "commit": splits.facts["dataset_commit"],
    }}

def stream():
    splits = load_image_dataset("fgvc_aircraft", streaming=Streaming(eval_samples=20))
    row = next(iter(splits["train"]))
    return [row["image"].mode, splits["train"].features["label"].num_classes, len(splits["test"])]

for alias in {aliases!r}:
    found[alias] = attempt(paper, alias)
for name in {faulty!r}:
    found[name] = attempt(counts, f"faulty/{{name}}")
def streamed(name):
    return sum(1 for split in load_image_dataset(f"faulty/{{name}}", streaming=True).values() for _ in split)

found["stream"] = attempt(stream)
for name in {streamed!r}:
    found[name] = attempt(streamed, name)
found["swapped_again"] = attempt(counts, "faulty/swapped")
found["swapped_mended"] = attempt(counts, "faulty/swapped", download_mode="force_redownload")
found["get_500_again"] = attempt(counts, "faulty/get_500")
found["token"] = attempt(counts, "faulty/gated", token={token!r})
cub = loading.SPECS["cub200"]
loading.SPECS = {{**loading.SPECS, "half": replace(cub, hub_id="faulty/half", revision="main")}}
found["half"] = attempt(counts, "half")
found["revision"] = attempt(counts, "faulty/cut", revision="v9")
"""


def other_labels() -> bytes:
    """The first shard with other labels, in exactly as many bytes."""
    whole = table(SMALL, SMALL.rows["train"])
    rows = whole.slice(0, len(whole) // 2)
    labels = rows["label"].to_numpy()
    labels = pa.array(labels.max() - labels)
    swapped = parquet(rows.set_column(1, whole.schema.field("label"), labels))
    assert len(swapped) == len(replica_files(SMALL)[SHARD])
    return swapped


def start(hub: HubServer) -> None:
    """The five datasets, and copies of a small one each with its own trouble."""
    for replica in REPLICAS.values():
        hub.create(replica.repo_id, replica_files(replica), kind="dataset", sha=replica.sha)
    complete = replica_files(SMALL)
    without_shard = {path: content for path, content in complete.items() if path != SHARD}
    for name in {*FAULTY, *STREAMED} - {"nowhere", "bare"}:
        access = {"gated": name == "gated", "private": name == "private", "readers": {hub.user}}
        hub.create(f"faulty/{name}", without_shard if name == "shard" else complete, kind="dataset", **access)
    hub.create("faulty/bare", replica_files(SMALL, declared=False), kind="dataset")
    bare = replica_files(REPLICAS["cub200"], declared=False)
    hub.create("faulty/half", {path: content for path, content in bare.items() if path != SHARD}, kind="dataset")
    hub.fail("faulty/head_500", method="HEAD")
    hub.fail("store/faulty/get_500")
    hub.fail("store/faulty/stream_500")
    for name in ("cut", "stream_cut", "shorten", "stream_shorten", "corrupt"):
        hub.fail(f"store/faulty/{name}/", name.removeprefix("stream_"))
    hub.fail(f"store/faulty/swapped/.*{SHARD}", "replace", content=other_labels())


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    with HubServer(page_size=3) as hub:
        start(hub)
        script = SCRIPT.format(aliases=list(REPLICAS), faulty=FAULTY, streamed=STREAMED, token=hub.token)
        yield hub, hub.run(script, tmp_path_factory.mktemp("datasets"), timeout=300)


@pytest.mark.parametrize("alias", REPLICAS)
def test_paper_dataset_has_its_sizes_and_classes(outcome, alias):
    hub, found = outcome
    loaded, spec, replica = found[alias]["value"], SPECS[alias], REPLICAS[alias]
    assert spec.hub_id == replica.repo_id and spec.num_classes == replica.classes
    assert loaded["sizes"] == dict(spec.sizes)
    assert loaded["columns"] == ["image", "label"] and loaded["modes"] == ["RGB"]
    assert len(loaded["names"]) == replica.classes
    assert loaded["most"] - loaded["fewest"] <= 2, "a stratified split of balanced classes is balanced"
    assert loaded["commit"] == hub.find(replica.repo_id, "dataset").head.sha


def test_classes_are_those_that_the_paper_counts(outcome):
    _, found = outcome
    names = {alias: found[alias]["value"]["names"] for alias in REPLICAS}
    assert "737-200" in names["fgvc_aircraft"], "variants, not families"
    assert "ak47" in names["caltech256"], "names, not numbers from 1"
    assert names["cub200"][0] == "001.Black_footed_Albatross"


def test_stream_comes_with_classes_and_fixed_evaluation_images(outcome):
    _, found = outcome
    assert found["stream"] == {"value": ["RGB", 100, 20]}


def test_stream_is_complete_or_fails(outcome):
    _, found = outcome
    assert found["stream_cut"] == found["stream_500"] == {"value": 500}
    assert "error" in found["stream_shorten"]


def test_lost_connections_and_a_failing_head_are_mended(outcome):
    hub, found = outcome
    for name in ("head_500", "cut", "bare"):
        assert found[name] == {"value": {"train": 360, "validation": 40, "test": 100}}
    assert len(hub.requests("GET", "store/faulty/cut")) == 5, "four files, one of them twice"


def test_gated_dataset_asks_for_access_and_loads_with_a_token(outcome):
    _, found = outcome
    assert found["gated"]["error"] == "ValueError"
    for word in ("gated", "huggingface.co/datasets/faulty/gated", "HF_TOKEN"):
        assert word in found["gated"]["message"]
    assert found["token"] == found["cut"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("private", "faulty/private"),
        ("nowhere", "faulty/nowhere"),
        ("revision", "v9"),
        ("shard", "another number of images"),
        ("corrupt", "force_redownload"),
        ("shorten", "Consistency check failed"),
        ("get_500", "500 Internal Server Error"),
    ],
)
def test_what_cannot_be_mended_is_told(outcome, name, words):
    _, found = outcome
    assert words in found[name]["message"], found[name]
    assert found[name]["error"] in ("ValueError", "OSError", "HfHubHTTPError", "ConnectionError")


def test_failed_download_can_be_repeated(outcome):
    _, found = outcome
    assert found["get_500_again"] == found["cut"]


def test_other_bytes_of_the_right_number_are_noticed_until_they_are_replaced(outcome):
    _, found = outcome
    for name in ("swapped", "swapped_again"):
        assert found[name]["error"] == "ValueError", f"{name}: wrong labels would have been trained on"
        assert SHARD in found[name]["message"] and "force_redownload" in found[name]["message"]
    assert found["swapped_mended"] == found["cut"]


def test_copy_without_promises_and_with_a_lost_shard_is_refused(outcome):
    """Here the client itself would load half of train and say nothing."""
    _, found = outcome
    assert found["half"]["error"] == "ValueError"
    assert "2997" in found["half"]["message"] and "5994" in found["half"]["message"]
