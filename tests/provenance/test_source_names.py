import os

import pytest
from conftest import REPOSITORY
from forked import LIBRARIES

from hf_robust_ft.provenance.source_names import nearest_places, nothing_here
from hf_robust_ft.runs.recipes import read_recipe


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "data" / "cifar").mkdir(parents=True)
    (tmp_path / "mine.yaml").write_text("eps: 4/255")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_nearest_places_are_there(here):
    assert nearest_places("data/cifr") == nearest_places("dta/cifar") == nearest_places("Data/cifar") == ["data/cifar"]
    assert nearest_places(f"{here}/data/ciffar") == [f"{here}/data/cifar"]
    assert nearest_places("data/imagenet") == nearest_places("data/cifar/x") == nearest_places("\0") == []
    assert nothing_here("data/cifr") == "There is no file or folder data/cifr here; there is data/cifar."


def test_a_recipe_of_another_name_is_offered(here):
    with pytest.raises(ValueError, match=r"no recipe 'min\.yaml', nor a file of that name\. Did you mean mine\.yaml\?"):
        read_recipe("min.yaml")
    with pytest.raises(ValueError, match=r"Did you mean paper_default\?"):
        read_recipe("paper_defaults")


SCRIPT = """
import time
from hf_robust_ft import load_image_classifier, load_image_dataset
for load, name in ((load_image_dataset, "data/cifr"), (load_image_classifier, "data/cifr")):
    start = time.perf_counter()
    try: load(name)
    except ConnectionError as error: print(error, "|", "slow" if time.perf_counter() - start > 5 else "fast")
"""


@pytest.mark.parametrize("offline", ["0", "1"])
def test_a_name_that_is_nothing_is_said_at_once_without_the_hub(here, offline):
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": offline, "HF_HOME": str(here / "home")}
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    (here / "script.py").write_text(SCRIPT)
    done = LIBRARIES.run(here / "script.py", [os.environ | environment | {"PYTHONPATH": path}], here, timeout=300)
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    for line in lines:
        assert line.startswith(
            "There is no file or folder data/cifr here; there is data/cifar. data/cifr is not cached"
        )
        assert line.endswith("| fast")
    assert "Retry" not in done.stderr
