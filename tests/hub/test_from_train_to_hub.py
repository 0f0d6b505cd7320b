"""The command line as a user goes: train with --push_to_hub, evaluate again, publish that."""

import json
from pathlib import Path

import pytest
import yaml
from finished_run import PUBLISHED, contents
from hub_server import HubServer
from huggingface_hub import ModelCard

from hf_robust_ft.runs.fine_tune import fine_tune

START = """
import pathlib, sys
sys.path.insert(0, {tests!r})
import conftest
call = lambda fixture, *args: fixture._get_wrapped_function()(*args)
processor, make_model, images = call(conftest.processor), call(conftest.make_model), call(conftest.images)
make_model("resnet", num_labels=9).save_pretrained("pretrained")
processor.save_pretrained("pretrained")
for index, example in enumerate(images):
    name = images.features["label"].names[example["label"]]
    place = pathlib.Path("colours", "test" if index >= 32 else "train", name)
    place.mkdir(parents=True, exist_ok=True)
    example["image"].save(place / f"{{index}}.png")
from hf_robust_ft.cli.main import main
here = str(pathlib.Path.cwd())
"""
COMMANDS = """
usual = ["--dataset", here + "/colours", "--eps", "8/255"]
flags = ["--model", here + "/pretrained", *usual, "--output_dir", here + "/run", "--attack_steps", "2",
         "--eval_attack_steps", "2", "--num_train_epochs", "4", "--per_device_train_batch_size", "8",
         "--validation_size", "0.25", "--use_cpu", "--disable_tqdm", "true",
         "--push_to_hub", "--hub_model_id", "tester/trained", "--hub_token", TOKEN]
main(["train", *flags])
main(["evaluate", "--model", "run", *usual, "--attack_steps", "2", "--output_dir", "evaluation", "--device", "cpu",
      "--protocol", "exact", "--save_examples", "2", "--validation_size", "0.25"])
main(["publish", "run", "tester/trained", "--report", "evaluation", "--license", "mit"])
"""


@pytest.fixture(scope="module")
def went(tmp_path_factory):
    folder = tmp_path_factory.mktemp("went")
    with HubServer() as hub:
        start = START.format(tests=str(Path(__file__).parent.parent))
        body = f"{start}\nTOKEN = {hub.token!r}\n{COMMANDS}"
        yield hub, hub.run(body, folder, token=hub.token, HF_HUB_OFFLINE="0", timeout=300), folder


def commits(hub):
    """Those of `train` when it was done, and of `publish`."""
    made = [commit for commit in hub.find("tester/trained").commits.values() if commit.parent]
    return [commit for commit in made if not commit.title.startswith("Training in progress")]


def test_train_publishes_what_publish_would(went):
    hub, _, _ = went
    trained, _ = commits(hub)
    assert set(trained.files) - {".gitattributes"} == PUBLISHED | {
        f"examples/example_00{number}.png" for number in range(4)
    }
    recipe = yaml.safe_load(trained.files["recipe.yaml"].content)
    assert recipe["eps"] == "8/255" and recipe["num_train_epochs"] == 4 and recipe["dataset"] == "./colours"
    record = json.loads(trained.files["provenance.json"].content)
    assert record["command"].startswith("hf-robust-ft train --model pretrained --dataset colours --eps 8/255")
    assert record["seeds"] == {"seed": 42, "split_seed": 0} and record["versions"]["torch"]


def test_an_evaluation_is_published_in_place_of_the_first(went):
    hub, _, folder = went
    _, again = commits(hub)
    unchanged = {"model.safetensors", "config.json", "recipe.yaml", "provenance.json", "training.png"}
    assert {"robustness_report.json", "README.md"} <= again.changed and not unchanged & again.changed
    card = ModelCard(again.files["README.md"].content.decode())
    assert {result.metric_args["protocol"] for result in card.data.eval_results} == {"exact"}
    assert card.data.license == "mit" and "| eps_schedule | hinge |" in str(card)
    assert json.loads((folder / "run" / "robustness_report.replaced.json").read_text())["protocol"] == "paper"


def test_no_folder_and_no_token_leaves_the_machine(went):
    hub, found, folder = went
    for commit in hub.find("tester/trained").commits.values():
        for name, file in commit.files.items():
            assert hub.token.encode() not in file.content and str(folder).encode() not in file.content, name
    written = {name: text for name, text in contents(folder).items() if name != "script.py"}
    assert not [name for name, text in written.items() if hub.token.encode() in text]
    assert hub.token not in found["stderr"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"robust_eval": "no"}, "which robust_eval='no' and eps=8/255 do not make"),
        ({"eps": "0", "eval_epsilons": None}, "which robust_eval='end' and eps=0 do not make"),
        ({"ema_decay": 0.9, "ema_use": "eval"}, "set ema_use=save to push_to_hub"),
    ],
)
def test_a_run_that_could_not_be_published_does_not_begin(make_args, changes, message):
    args = make_args(push_to_hub=True, hub_strategy="end", **changes)
    with pytest.raises(ValueError, match=message):
        fine_tune(None, None, args)
