"""`trainer.push_to_hub()` from somebody's own script: what the repository tells of command, model and dataset."""

import json
from pathlib import Path

import pytest
from finished_run import write_checkpoint
from hub_server import HubServer
from huggingface_hub import ModelCard
from loopback_hub.replicas import Replica, replica_files

COLOURS = Replica("someone/Colours-4", {"label": ("birds", 4)}, {"train": 16, "test": 8}, {"train": 1, "test": 1}, 4)

SCRIPT = """
import sys
sys.argv = [sys.argv[0], "--epochs", "1", "--out", {folder!r} + "/run", "--hub_token", "hf_writes"]
import blank_pictures
import short_search
from datasets import load_dataset
from transformers import AutoImageProcessor, AutoModelForImageClassification
from hf_robust_ft import AdversarialTrainer, AdversarialTrainingArguments
from hf_robust_ft.data import with_pixel_values

processor = AutoImageProcessor.from_pretrained("timm/base")
model = AutoModelForImageClassification.from_pretrained("timm/base")
data = load_dataset("someone/Colours-4")
train, test = (with_pixel_values(data[name], processor) for name in ("train", "test"))
args = AdversarialTrainingArguments(
    "run", eps="8/255", attack_steps=1, eval_attack_steps=1, num_train_epochs=1, use_cpu=True, report_to="none",
    remove_unused_columns=False, disable_tqdm=True, hub_model_id="tester/mine",
    per_device_eval_batch_size=4, save_strategy="no",
)
trainer = AdversarialTrainer(model, args, train_dataset=train, eval_dataset=test, processing_class=processor)
trainer.train()
trainer.evaluate()
found["commit"] = trainer.push_to_hub().oid
found["other"] = attempt(lambda: trainer.push_to_hub(dataset_tags="someone/else").oid)
"""


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pushed")
    base = write_checkpoint(folder / "base")
    with HubServer() as hub:
        dataset = hub.create(COLOURS.repo_id, replica_files(COLOURS), kind="dataset")
        hub.create("timm/base", {path.name: path.read_bytes() for path in base.iterdir()})
        found = hub.run(SCRIPT.format(folder=str(folder)), folder, token=hub.token, HF_HUB_OFFLINE="0")
        yield hub, found, dataset, folder


def test_command_model_and_dataset_are_named_where_they_are_known(pushed):
    hub, found, dataset, folder = pushed
    files = hub.find("tester/mine").files(found["commit"])
    record = json.loads(files["provenance.json"])
    assert record["command"] == "python script.py --epochs 1 --out run --hub_token"
    assert (record["base_model"], record["dataset"]) == ("timm/base", "someone/Colours-4")
    assert record["dataset_commit"] == dataset.head.sha and record["seeds"] == {"seed": 42}
    text = files["README.md"].decode()
    assert "python script.py --epochs 1" in text and "--dataset someone/Colours-4" in text
    data = ModelCard(text).data
    assert (data.base_model, data.datasets) == ("timm/base", ["someone/Colours-4"])
    assert {result.dataset_revision for result in data.eval_results} == {dataset.head.sha}
    for name, content in files.items():
        assert str(Path(folder)).encode() not in content and hub.token.encode() not in content, name


def test_another_dataset_named_by_the_user_does_not_get_the_loaded_ones_commit(pushed):
    hub, found, _, _ = pushed
    data = ModelCard(hub.find("tester/mine").files(found["other"]["value"])["README.md"].decode()).data
    assert data.datasets == ["someone/else"] and {result.dataset_revision for result in data.eval_results} == {None}
