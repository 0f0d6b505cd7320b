"""Every dependency states the oldest version the tests pass with, and a CI job installs exactly those."""

import importlib.util
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
_spec = importlib.util.spec_from_file_location("minimum_versions", ROOT / ".github" / "minimum_versions.py")
minimum_versions = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(minimum_versions)


def test_the_constraints_are_the_floors_of_setup_cfg():
    floors = minimum_versions.floors()
    lines = [line for group in minimum_versions.requirements().values() for line in group]
    parsed = [Requirement(line) for line in lines]
    named = {each.name: each for each in parsed if each.name != "hf_robust_ft"}
    assert floors.keys() == named.keys() and len(floors) > 25
    for name, requirement in named.items():
        (specifier,) = requirement.specifier
        assert specifier.operator in (">=", "==") and Version(specifier.version) == Version(floors[name]), name


def test_what_runs_here_is_not_older():
    older = {}
    for name, floor in minimum_versions.floors().items():
        try:
            installed = version(name)
        except PackageNotFoundError:  # of an extra
            continue
        if Version(installed) < Version(floor):
            older[name] = (installed, floor)
    assert not older


def test_extras_name_extras_that_exist():
    groups = minimum_versions.requirements()
    for lines in groups.values():
        for line in (line for line in lines if line.startswith("hf_robust_ft[")):
            assert Requirement(line).extras <= groups.keys(), line


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("torch", "states no oldest version"),
        ("torch<3", "states no oldest version"),
        ("torch>=2.1,<3", "states no oldest version"),
        ("numpy>=2.5", "numpy has two oldest versions: 2.4 and 2.5"),
    ],
)
def test_a_dependency_without_one_floor_is_an_error(tmp_path, line, message):
    text = f"[options]\ninstall_requires =\n    numpy>=2.4\n[options.extras_require]\nmore =\n    {line}\n"
    (tmp_path / "setup.cfg").write_text(text)
    with pytest.raises(ValueError, match=message):
        minimum_versions.floors(tmp_path / "setup.cfg")


def test_the_workflow_tests_the_newest_and_the_oldest():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    jobs = {name: [step.get("run", "") for step in job["steps"]] for name, job in workflow["jobs"].items()}
    command = "pytest -n 2"
    assert command in jobs["tests"] and command in jobs["minimum-versions"]
    assert jobs["minimum-versions"][2:4] == [
        "python .github/minimum_versions.py > floors.txt",
        "pip install -c floors.txt -e .[test]",
    ]
    oldest = re.search(r"python_requires = >=(\S+)", (ROOT / "setup.cfg").read_text())[1]
    setups = [step["with"] for step in workflow["jobs"]["minimum-versions"]["steps"] if "with" in step]
    assert setups[0]["python-version"] == oldest == workflow["jobs"]["tests"]["strategy"]["matrix"]["python"][0]
    assert "pip install --pre --upgrade transformers accelerate" in jobs["release-candidate"]
    assert "schedule" in workflow[True]  # "on", which YAML 1.1 takes for a truth value
    assert workflow["permissions"] == {"contents": "read"}
