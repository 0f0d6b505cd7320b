import dataclasses
import json
import subprocess
from importlib.metadata import PackageNotFoundError

import pytest
import yaml
from transformers import TrainingArguments

import hf_robust_ft
from hf_robust_ft import AdversarialTrainingArguments
from hf_robust_ft.provenance import record as run_record
from hf_robust_ft.provenance.affects import TRAINERS_OWN
from hf_robust_ft.provenance.record import (
    environment_facts,
    git_state,
    hardware,
    own_place,
    portable_recipe,
    resolved_recipe,
    write_run_record,
)
from hf_robust_ft.runs.arguments import DataArguments, ModelArguments
from hf_robust_ft.runs.recipes import parse_recipe

TYPES = (ModelArguments, DataArguments, AdversarialTrainingArguments)


@pytest.mark.parametrize("recipe", ["paper_default", "quickstart", "lora", "linear_probe", "roli"])
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
        for name in names | (TRAINERS_OWN.keys() & own):
            assert getattr(one, name) == getattr(other, name), name


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Data in `data/photos` and `cub200`, a checkpoint and a weight file; and decoys of all in another folder."""
    for top in ("here", "there"):
        for folder in ("data/photos", "cub200", "models/vit", "r50"):
            (tmp_path / top / folder).mkdir(parents=True)
        (tmp_path / top / "weights.pt").write_bytes(b"")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


@pytest.mark.parametrize("named", ["data/photos", "./data/photos", "../here/data/photos", "{here}/data/photos"])
def test_a_recipe_leads_back_to_the_same_places_from_anywhere(places, monkeypatch, named):
    named = named.format(here=places / "here")
    options = ModelArguments("weights.pt", architecture="models/vit"), DataArguments(named)
    write_run_record(places / "run", resolved_recipe(*options, place=own_place), {})
    for folder in ("here", "there"):
        monkeypatch.chdir(places / folder)
        again = parse_recipe((ModelArguments, DataArguments), places / "run" / "recipe.yaml", {})
        found = [again[1].dataset, again[0].model, again[0].architecture]
        assert found == [str(places / "here" / path) for path in ("data/photos", "weights.pt", "models/vit")]


def test_a_recipe_for_others_names_no_folder_of_this_machine_and_nothing_of_the_hub(places):
    for named, shown in (("data/photos", "./data/photos"), (str(places / "here/data/photos"), "./photos")):
        options = ModelArguments(str(places / "here/models/vit")), DataArguments(named)
        recipe = resolved_recipe(*options)
        assert (recipe["dataset"], recipe["model"]) == (shown, "./vit")
        assert str(places) not in yaml.safe_dump(recipe)
    write_run_record(places, resolved_recipe(*options, place=own_place) | {"prompts": ["a: b"]}, {})
    published = portable_recipe((places / "recipe.yaml").read_text() + "seed: 3 # mine\n")
    assert str(places) not in published and published.endswith("seed: 3 # mine\n")
    assert yaml.safe_load(published) == {**recipe, "prompts": ["a: b"], "seed": 3}


def test_no_argument_of_a_published_recipe_names_a_folder_of_this_machine_whatever_it_is_called():
    text = "plan: /home/me/plan.json  # mine\neps: 4/255\nlabels: '/home\n  /me/labels'\n- dataset: /x\n"
    assert portable_recipe(text) == text.replace("/home/me/plan.json  # mine", "./plan.json")


def test_a_folder_called_like_one_of_our_names_is_not_meant(places):
    recipe = resolved_recipe(ModelArguments("r50"), DataArguments("cub200"), place=own_place)
    assert (recipe["model"], recipe["dataset"]) == ("r50", "cub200")
    recipe = resolved_recipe(ModelArguments("./r50"), DataArguments("./cub200"))
    assert (recipe["model"], recipe["dataset"]) == ("./r50", "./cub200")


def test_a_published_recipe_without_its_folders_is_an_error_that_says_so(places, monkeypatch, tmp_path):
    recipe = resolved_recipe(ModelArguments("models/vit"), DataArguments("data/photos"))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"There is no file or folder \./data/photos here"):
        DataArguments(recipe["dataset"]).load()
    with pytest.raises(ValueError, match=r"There is no file or folder \./models/vit here"):
        ModelArguments(recipe["model"])


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
