"""Stored examples travel with a checkpoint on request, and `hf-robust-ft verify REPO` takes them from the Hub."""

from pathlib import Path

import pytest
from hub_server import HubServer

SCRIPT = """
import contextlib, io, shutil, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import conftest
from hf_robust_ft.cli.main import main
from hf_robust_ft.hub import publish

call = lambda fixture, *args: fixture._get_wrapped_function()(*args)
images = call(conftest.images)
data = call(conftest.imagefolder, images, Path("."))
model = call(conftest.make_model)("resnet")
model.config.id2label = dict(enumerate(images.features["label"].names))
model.config.label2id = {{name: label for label, name in model.config.id2label.items()}}
model.save_pretrained("run")
call(conftest.processor).save_pretrained("run")

def command(*words):
    printed, errors, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        try:
            main(list(words))
        except SystemExit as stop:
            code = stop.code
    return dict(printed=printed.getvalue(), errors=errors.getvalue(), code=code)

measure = ["evaluate", "--model", "run", "--dataset", "colours", "--eps", "8/255", "--attack_steps", "2",
           "--trust_checks", "false", "--device", "cpu", "--output_dir"]
found["evaluated"] = [command(*measure, "plain"), command(*measure, "evaluation", "--store_examples")]
found["none"] = command("publish", "run", "tester/none", "--report", "plain", "--examples")
found["published"] = command("publish", "run", "tester/robust", "--report", "evaluation", "--examples")
found["verified"] = command("verify", "tester/robust", "--device", "cpu")
found["elsewhere"] = command("publish", "run", "tester/bare", "--report", "evaluation")
found["bare"] = command("verify", "tester/bare", "--device", "cpu")
found["given"] = command("verify", "tester/bare", "--device", "cpu", "--examples", "evaluation")
found["again"] = command("publish", "run", "tester/robust", "--report", "evaluation")
"""


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    with HubServer() as hub:
        script = SCRIPT.format(tests=str(Path(__file__).parents[1]))
        yield hub, hub.run(script, folder, token=hub.token, timeout=300, HF_HUB_OFFLINE="0")


def test_examples_are_published_on_request_and_verify_from_the_repository(both):
    _, found = both
    assert [each["code"] for each in found["evaluated"]] == [0, 0], found["evaluated"]
    assert found["published"]["code"] == 0, found["published"]
    assert found["verified"]["code"] == 0, found["verified"]
    assert "ok     weights" in found["verified"]["printed"] and "Verified" in found["verified"]["printed"]


def test_without_the_request_they_stay_here_and_can_be_given(both):
    hub, found = both
    assert found["elsewhere"]["code"] == 0, found["elsewhere"]
    assert not [name for name in hub.find("tester/bare").files() if name.startswith("adversarial_examples/")]
    assert found["bare"]["code"] == 2 and "has no stored examples: evaluate with" in found["bare"]["errors"]
    assert found["given"]["code"] == 0, found["given"]


def test_what_was_not_stored_cannot_be_published(both):
    hub, found = both
    assert found["none"]["code"] == 2 and "evaluate with --store_examples" in found["none"]["errors"]
    assert hub.find("tester/none") is None


def test_a_publication_without_them_takes_earlier_ones_out(both):
    hub, found = both
    assert found["again"]["code"] == 0, found["again"]
    assert not [name for name in hub.find("tester/robust").files() if name.startswith("adversarial_examples/")]
