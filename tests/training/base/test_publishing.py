"""`push_to_hub` of the Trainer, and its pushes on the way, with the real client against the loopback Hub."""

import copy
import json
import pickle

import pytest
from conftest import TESTS
from finished_run import PUBLISHED, contents
from hub_server import HubServer

START = """
import os, pathlib, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import peft
import conftest
import hf_robust_ft.hub.retry as patience
patience.WAITS = (0.01, 0.02)

call = lambda fixture, *args: fixture._get_wrapped_function()(*args)
processor, make_model = call(conftest.processor), call(conftest.make_model)
dataset = call(conftest.dataset, call(conftest.images), processor)
make_args = call(conftest.make_args, pathlib.Path("."))
make_trainer = call(conftest.make_trainer, make_model, make_args, dataset, processor)
TOKEN = os.environ["GIVEN_TOKEN"]

def trainer(name, model=None, **changes):
    settings = dict(output_dir=name, push_to_hub=True, hub_model_id="tester/" + name, hub_token=TOKEN, eps="8/255",
                    eps_schedule="constant", num_train_epochs=2, logging_strategy="no")
    return make_trainer(model or make_model("resnet"), **(settings | changes))
"""
RUNS = """
for strategy in ("end", "every_save", "checkpoint"):
    run = trainer(strategy, hub_strategy=strategy, save_strategy="epoch")
    run.train()
    run.save_model()
    run.eval_dataset, kept = None, run.eval_dataset
    found[strategy + " early"] = attempt(run.push_to_hub)
    run.evaluate(kept)
    found[strategy] = attempt(lambda: run.push_to_hub(dataset_tags="someone/colours").oid)
adapters = peft.LoraConfig(r=2, target_modules=["convolution"], modules_to_save=["classifier"])
model = peft.get_peft_model(make_model("resnet"), adapters)
run = trainer("adapters", model, hub_strategy="every_save", save_strategy="epoch")
run.train()
run.save_model()  # peft's own files, and its form of a card
found["saved adapters"] = sorted(path.name for path in pathlib.Path("adapters").iterdir())
model.push_to_hub("tester/adapters", token=TOKEN)
found["adapters"] = attempt(lambda: run.push_to_hub().oid)
run = trainer("lora", hub_strategy="end", lora_rank=2, lora_targets=["convolution"])
run.train()
run.evaluate()
found["licence"] = attempt(run.push_to_hub, license="Apache 2")
found["lora"] = attempt(lambda: run.push_to_hub().oid)
with torch.no_grad():
    next(weight for weight in run.model.parameters() if weight.requires_grad).add_(1)
found["changed"] = attempt(run.push_to_hub)
run.evaluate()
found["background"] = attempt(lambda: run.push_to_hub(blocking=False).result().oid)

run = trainer("failing", hub_strategy="every_save", hub_always_push=True, save_strategy="epoch")
found["failing"] = attempt(run.train)
found["saved"] = sorted(path.name for path in pathlib.Path("failing").iterdir())
run.evaluate()
found["after_all"] = attempt(lambda: run.push_to_hub().oid)
found["refused"] = attempt(lambda: trainer("refused", hub_model_id="stranger/refused"))
for use in ("eval", "save"):
    run = trainer("ema_" + use, hub_strategy="end", ema_decay=0.5, ema_use=use)
    run.train()
    run.evaluate()
    found["ema_" + use] = attempt(lambda: run.push_to_hub().oid)
"""


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pushed")
    with HubServer() as hub:
        token = "hf_" + "SECRETsecret42" * 3
        hub.users[token] = hub.users[hub.token]
        hub.fail("tester/failing/commit/", method="POST", times=6)
        body = START.format(tests=str(TESTS)) + RUNS
        found = hub.run(body, folder, timeout=400, GIVEN_TOKEN=token, HF_HUB_OFFLINE="0")
        yield hub, found, folder, token


@pytest.mark.parametrize("name", ["end", "every_save", "checkpoint", "lora", "adapters"])
def test_what_lands_is_the_same_whatever_was_pushed_on_the_way(pushed, name):
    hub, found, _, _ = pushed
    repository = hub.find(f"tester/{name}")
    assert found[name] == {"value": repository.head.sha} or name == "lora", found[name]
    sha = found[name]["value"]
    assert set(repository.files(sha)) == PUBLISHED | {f"examples/example_{index:03d}.png" for index in range(4)}
    for commit in repository.commits.values():
        state = {path for path in commit.files if path.endswith((".pt", ".pth", ".bin"))}
        assert all(path.startswith("last-checkpoint/") for path in state) and (name == "checkpoint" or not state)
        assert not any("training_args" in path for path in commit.files)
    early = sum(commit.title.startswith("Training in progress") for commit in repository.commits.values())
    assert (early > 0) == (name not in ("end", "lora", "adapters"))
    report = json.loads(repository.files(sha)["robustness_report.json"])
    weights = repository.commits[sha].files["model.safetensors"]
    assert report["metadata"]["weights_sha256"] == {"model.safetensors": weights.sha256}


def test_a_licence_that_the_hub_does_not_list_is_told_and_not_kept(pushed):
    _, found, _, _ = pushed
    assert "license='Apache 2' is no licence id" in found["licence"]["message"] and "value" in found["lora"]


def test_who_pushes_optimizer_state_is_told(pushed):
    _, found, _, _ = pushed
    told = "hub_strategy=checkpoint also pushes optimizer and random state (pickles)"
    assert found["stderr"].count("also pushes optimizer and random state") == found["stderr"].count(told) == 1


def test_saving_does_not_push_and_pushing_needs_an_evaluation(pushed):
    _, found, _, _ = pushed
    for name in ("end", "every_save", "checkpoint"):
        assert found[f"{name} early"]["error"] == "ValueError"
        assert "call trainer.evaluate(dataset) before push_to_hub()" in found[f"{name} early"]["message"]


def test_of_somebodys_own_peft_model_the_merged_classifier_lands_measured_where_it_was_not(pushed):
    """As peft's example goes, whose last line is a push without an evaluation."""
    hub, found, _, _ = pushed
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= set(found["saved adapters"])
    assert "model.safetensors" not in found["saved adapters"]
    card = hub.find("tester/adapters").files(found["adapters"]["value"])["README.md"].decode()
    assert "More Information Needed" not in card and card.count("## Results") == 1
    assert found["stderr"].count("nothing was measured yet, so trainer.evaluate() runs first") == 1
    assert "Adapters are not pushed on the way" in found["stderr"]


def test_a_report_does_not_go_with_weights_that_changed_since(pushed):
    _, found, _, _ = pushed
    assert found["changed"]["error"] == "ValueError" and "measured on other weights" in found["changed"]["message"]
    assert "value" in found["background"]
    assert found["ema_eval"]["error"] == "ValueError" and "of the averaged weights" in found["ema_eval"]["message"]
    assert "value" in found["ema_save"]


def test_failures_on_the_way_are_raised_when_training_is_done_and_saved(pushed):
    hub, found, _, _ = pushed
    assert found["failing"]["error"] == "BackgroundPushError", found["failing"]
    message = found["failing"]["message"]
    assert (
        "Training is complete and the model is in failing" in message and "2 of 2 pushes to tester/failing" in message
    )
    assert "the Hub answered 500" in message and "\n" not in message
    assert {"model.safetensors", "config.json"} <= set(found["saved"])
    assert found["after_all"] == {"value": hub.find("tester/failing").head.sha}


def test_a_repository_that_cannot_be_written_stops_before_training(pushed):
    _, found, _, _ = pushed
    assert found["refused"]["error"] == "PublishError" and "may not write there" in found["refused"]["message"]


def test_the_token_is_nowhere(pushed):
    """Searched: every file the client wrote, every byte the server received as a file, all output and errors."""
    hub, found, folder, token = pushed
    written = contents(folder)
    assert len(written) > 100 and any(name.endswith("training_args.bin") for name in written)
    places = {**written, "output": json.dumps(found).encode()}
    for repository in hub.repositories.values():
        for commit in repository.commits.values():
            places |= {f"{repository.repo_id}@{commit.sha} {name}": file.content for name, file in commit.files.items()}
            places[commit.sha] = (commit.title + commit.description).encode()
    places |= hub.blobs
    assert [name for name, content in places.items() if token.encode() in content] == []


def test_paths_and_the_environment_stay_out_of_what_is_published(pushed):
    hub, _, folder, _ = pushed
    for repository in hub.repositories.values():
        for name, content in repository.files().items():
            if name.endswith((".json", ".md", ".yaml")):
                assert str(folder).encode() not in content and b"GIVEN_TOKEN" not in content, name


def test_arguments_are_pickled_without_the_token_and_copied_with_it(make_args):
    args = make_args(hub_token="hf_given", seed=7)
    assert pickle.loads(pickle.dumps(args)).hub_token is None and pickle.loads(pickle.dumps(args)).seed == 7
    for twin in (copy.copy(args), copy.deepcopy(args)):
        assert twin.hub_token == "hf_given" and twin.seed == 7 and type(twin) is type(args)
    assert args.hub_token == "hf_given"
