"""The facts of a run: known by name, merged in one place, kept through files of any version."""

import json

import pytest

from hf_robust_ft import RobustnessReport
from hf_robust_ft.provenance.facts import RunFacts
from hf_robust_ft.provenance.record import RECORDED_FACTS


def test_later_sources_replace_earlier_ones_and_none_forgets():
    facts = RunFacts().merged({"dataset": "a", "split": "test"}, {"dataset": "b"}, split=None)
    assert facts == {"dataset": "b"} and facts.dataset == "b" and facts.split is None
    assert "split" not in facts and facts.get("split", "none") == "none"


def test_facts_nobody_knows_here_are_kept():
    facts = RunFacts().merged(my_cluster="one", dataset="digits")
    assert facts["my_cluster"] == "one" and list(facts) == ["dataset", "my_cluster"]
    assert facts.merged(my_cluster=None) == {"dataset": "digits"}


def test_an_evaluation_takes_what_made_the_weights_from_the_checkpoint_alone():
    facts = RunFacts().merged(training={"eps": "4/255"}, dataset="digits", command="x", weights_sha256={"a": "b"})
    assert facts.of_model() == {"training": {"eps": "4/255"}}


def test_what_provenance_repeats_are_facts():
    assert all(hasattr(RunFacts(), name) for name in RECORDED_FACTS)


@pytest.fixture
def report():
    return RobustnessReport(1.0, 0.5, 0.75, [0.0, 0.1], [1.0, 0.5], {"norm": "Linf", "eps": 0.1}, {"steps": 10},
                            "paper", 2, metadata={"dataset": "digits", "own": [1]})  # fmt: skip


def test_a_report_keeps_them_through_its_file(report, tmp_path):
    path = tmp_path / "report.json"
    report.to_json(path)
    content = json.loads(path.read_text())
    assert content["metadata"] == {"dataset": "digits", "own": [1]} and content["schema_version"] == 2
    assert RobustnessReport.from_json(path) == report


def test_reports_of_before_there_were_versions_are_read(report, tmp_path):
    path = tmp_path / "report.json"
    content = report.to_dict()
    del content["schema_version"]
    content["metadata"] |= {"split": None}
    path.write_text(json.dumps(content))
    assert RobustnessReport.from_json(path) == report


@pytest.mark.parametrize("version", [3, "2"])
def test_reports_of_newer_versions_are_refused_by_name(report, tmp_path, version):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report.to_dict() | {"schema_version": version, "new": 1}))
    with pytest.raises(ValueError, match=rf"schema_version {version!r}, this package reads those up to 2"):
        RobustnessReport.from_json(path)
