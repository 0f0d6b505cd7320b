import dataclasses
import json
import subprocess
from importlib.metadata import PackageNotFoundError

import pytest
import yaml
from transformers import TrainingArguments

import hf_robust_ft
from hf_robust_ft import AdversarialTrainingArguments, run_record
from hf_robust_ft.recipes import parse_recipe
from hf_robust_ft.run_arguments import DataArguments, ModelArguments
from hf_robust_ft.run_record import (
    RECORDED_ARGUMENTS,
    environment_facts,
    git_state,
    hardware,
    resolved_recipe,
    write_run_record,
)

TYPES = (ModelArguments, DataArguments, AdversarialTrainingArguments)


@pytest.mark.parametrize("recipe", ["paper_default", "quickstart", "lora", "linear_probe"])
def test_a_resolved_recipe_gives_the_same_arguments(recipe, tmp_path):
    changes = {
        "output_dir": str(tmp_path / "run"), "use_cpu": True, "report_to": "none", "learning_rate": 3e-4,
        "model": "timm/resnet18", "dataset": "someone/colours", "hub_token": "hf_hidden",
    }  # fmt: skip
    parsed = parse_recipe(TYPES, recipe, changes)
    write_run_record(tmp_path, resolved_recipe(*parsed), {})
    text = (tmp_path / "recipe.yaml").read_text()
    assert "hf_hidden" not in text and str(tmp_path) not in text
    again = parse_recipe(TYPES, tmp_path / "recipe.yaml", {"output_dir": str(tmp_path / "again"), "use_cpu": True})
    for one, other in zip(parsed, again, strict=True):
        own = {entry.name for entry in dataclasses.fields(one) if entry.init}
        inherited = {entry.name for entry in dataclasses.fields(TrainingArguments)}
        names = own - inherited if isinstance(one, AdversarialTrainingArguments) else own
        for name in names | (set(RECORDED_ARGUMENTS) & own):
            assert getattr(one, name) == getattr(other, name), name


def test_places_on_this_machine_are_named_without_their_folders(tmp_path):
    (tmp_path / "photos").mkdir()
    recipe = resolved_recipe(ModelArguments(str(tmp_path)), DataArguments(str(tmp_path / "photos")))
    assert recipe["dataset"] == "photos" and recipe["model"] == tmp_path.name
    assert str(tmp_path) not in yaml.safe_dump(recipe)


def test_the_commit_is_that_of_the_folder_one_works_in(tmp_path):
    assert git_state(tmp_path) is None and git_state(tmp_path / "nowhere") is None
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    (tmp_path / "file").write_text("1")
    clean = git_state(tmp_path)
    assert len(clean["commit"]) == 40 and clean["uncommitted_changes"] is False
    subprocess.run([*git, "add", "file"], cwd=tmp_path, check=True)
    assert git_state(tmp_path) == {"commit": clean["commit"], "uncommitted_changes": True}


def test_the_record_holds_facts_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "hidden-value")
    facts = environment_facts()
    assert set(facts) <= {"versions", "hardware", "git"} and set(hardware()) == {
        "architecture",
        "cpu_cores",
        "threads",
        "accelerators",
    }
    write_run_record(tmp_path, None, {**facts, "command": "hf-robust-ft train", "transforms": {"text": "long"}})
    text = (tmp_path / "provenance.json").read_text()
    assert json.loads(text)["command"] == "hf-robust-ft train" and "transforms" not in text
    assert "hidden-value" not in text and not (tmp_path / "recipe.yaml").exists()


def test_the_version_is_told_from_source_too(monkeypatch):
    def uninstalled(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(run_record, "version", uninstalled)
    assert run_record.library_versions()["hf_robust_ft"] == hf_robust_ft.__version__
