"""The metric as a Space, loaded by `evaluate` in a clean process; and what its README tells."""

from pathlib import Path

import pytest
from hub_server import HubServer

from hf_robust_ft.hub.metric_space import METRIC, MODULES
from hf_robust_ft.metrics.robustness.robustness import Robustness

PUBLISH = """
from hf_robust_ft.hub import publish_metric
found["oid"] = publish_metric("tester/my-robustness").oid
found["again"] = publish_metric("tester/my-robustness").oid
from hf_robust_ft.cli.main import main
found["second"] = attempt(main, ["publish-metric", "tester/second", "--private"])
found["refused"] = attempt(publish_metric, "someone/robustness")
"""
LOAD = """
import sys
import evaluate, importlib
try:
    metric = evaluate.load("tester/my-robustness")
except ModuleNotFoundError:  # evaluate imports what it has just written, at times from a listing of a moment before
    importlib.invalidate_caches()
    metric = evaluate.load("tester/my-robustness")
found["results"] = metric.compute(
    predictions=[[0, 0, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0]], references=[0, 1, 1, 0], epsilons=[0, 2 / 255, 4 / 255]
)
found["weighted"] = metric.compute(
    predictions=[[0, 1], [1, 1]], references=[0, 1], epsilons=[0, 1 / 255], distribution="dirac:1/255"
)["expected_robustness"]
import doctest
from huggingface_hub import hf_hub_download
with open(hf_hub_download("tester/my-robustness", "README.md", repo_type="space"), encoding="utf-8") as file:
    examples = doctest.DocTestParser().get_doctest(file.read(), {}, "README", None, 0)
found["readme"] = [len(examples.examples) > 8, doctest.DocTestRunner().run(examples).failed]
found["alone"] = not any(name.split(".")[0] == "hf_robust_ft" for name in sys.modules)
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("metric")
    with HubServer() as hub:
        yield hub, hub.run(PUBLISH, folder, token=hub.token)


def test_the_space_holds_the_module_under_its_own_name(published):
    hub, found = published
    space = hub.find("tester/my-robustness", "space")
    assert found["oid"] == found["again"] == space.head.sha
    assert set(space.files()) == {
        "README.md", "index.html", "requirements.txt", "my-robustness.py", "class_indices.py", "curve.py",
        "masks.py", "threat_distributions.py", "threat_distribution_specs.py",
    }  # fmt: skip
    assert 'evaluate.load("tester/my-robustness")' in space.files()["README.md"].decode()
    assert "value" in found["second"] and hub.find("tester/second", "space").private
    assert found["refused"]["error"] == "PublishError" and "may not write there" in found["refused"]["message"]
    assert found["refused"]["message"].endswith("Go on with: hf-robust-ft publish-metric someone/robustness")


def test_evaluate_loads_it_in_a_clean_process(published, tmp_path):
    hub, _ = published
    found = hub.run(LOAD, tmp_path, HF_EVALUATE_OFFLINE="0")
    assert found["results"] == {
        "clean_accuracy": 1.0, "adversarial_accuracy": 0.5, "expected_robustness": 0.75, "accuracies": [1.0, 0.75, 0.5],
    }  # fmt: skip
    assert found["weighted"] == 0.5 and found["alone"]
    assert found["readme"] == [True, 0], found["stderr"]


@pytest.mark.parametrize("section", ["How to use", "Inputs", "Output values", "Examples", "Limitations", "Citation"])
def test_the_readme_is_complete(section):
    text = (METRIC / "README.md").read_text(encoding="utf-8")
    assert f"\n## {section}\n" in text
    described = Robustness(keep_in_memory=True).inputs_description
    for name in ("predictions", "references", "epsilons", "weights", "distribution"):
        assert f"**{name}**" in text and f"{name}:" in described


def test_everything_the_script_imports_is_published():
    imported = {line.split()[1].lstrip(".") for line in Path(METRIC / "robustness.py").read_text().splitlines()
                if line.startswith("from .")}  # fmt: skip
    assert {f"{name}.py" for name in imported} == set(MODULES)
