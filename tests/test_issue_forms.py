"""GitHub shows a form only if it is one: otherwise it is left out without a word."""

from pathlib import Path

import pytest
import yaml

FORMS = sorted((Path(__file__).parent.parent / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


@pytest.mark.parametrize("file", [file for file in FORMS if file.stem != "config"], ids=lambda file: file.stem)
def test_a_form_is_one_that_github_shows(file):
    form = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert set(form) == {"name", "description", "labels", "body"} and len(form["description"]) < 200
    ids = [each["id"] for each in form["body"]]
    assert len(set(ids)) == len(ids) and any(each.get("validations", {}).get("required") for each in form["body"])
    for each in form["body"]:
        assert each["type"] in ("textarea", "input", "dropdown", "checkboxes") and each["attributes"]["label"]
        assert set(each) <= {"type", "id", "attributes", "validations"}


def test_there_is_a_form_for_faults_figures_and_wishes():
    assert {file.stem for file in FORMS} == {"bug", "config", "figure", "wish"}
