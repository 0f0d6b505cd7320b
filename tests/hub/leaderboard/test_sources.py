"""Local folders as sources; repositories are in test_leaderboard_hub."""

from dataclasses import replace

import pytest
from huggingface_hub import HfApi
from page_runs import make_report

from hf_robust_ft.cli.main import main
from hf_robust_ft.hub.leaderboard import read_sources
from hf_robust_ft.reporting import render_model_card


@pytest.fixture
def read():
    """Reading may not reach for the Hub: a folder is not asked for there."""
    return lambda *sources: read_sources(HfApi(endpoint="http://127.0.0.1:1"), list(map(str, sources)))


def test_folders_of_one_name_are_told_apart(read, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "evaluation").mkdir(parents=True)
        make_report().to_json(tmp_path / name / "evaluation" / "robustness_report.json")
    results, problems = read(tmp_path / "a" / "evaluation", tmp_path / "b" / "evaluation")
    assert [result.source for result in results] == ["a/evaluation", "b/evaluation"] and not problems


def test_a_folder_of_runs_stands_for_them(read, tmp_path, capsys):
    for name in ("a", "b", "unfinished"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    for seed, name in enumerate(("a", "b")):
        make_report(seed).to_json(tmp_path / "runs" / name / "robustness_report.json")
    results, problems = read(tmp_path / "runs", tmp_path / "runs" / "a")  # one that is named twice counts once
    assert [result.source for result in results] == ["a", "b"] and not problems
    pytest.importorskip("plotly")
    main(["report", str(tmp_path / "runs"), "--html", str(tmp_path / "page.html")])
    assert "2 runs" in capsys.readouterr().out


def test_a_card_alone_gives_what_the_report_would(read, tmp_path):
    report = make_report()
    for name in ("card", "report", "both"):
        (tmp_path / name).mkdir()
    for name in ("card", "both"):
        (tmp_path / name / "README.md").write_text(render_model_card(report))
    for name in ("report", "both"):
        report.to_json(tmp_path / name / "robustness_report.json")
    (card, told, both), problems = read(tmp_path / "card", tmp_path / "report", tmp_path / "both")
    assert not problems and card.setting == told.setting == both.setting
    for score in ("expected_robustness", "adversarial_accuracy", "clean_accuracy"):
        assert getattr(card, score) == pytest.approx(getattr(told, score), abs=1e-6)
    assert card.reliability == told.reliability == both.reliability and card.reliability.startswith("doubtful: conv")
    assert both.interval == told.interval


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "it holds neither a robustness_report.json nor robustness results in its card's model-index"),
        ({"README.md": "# No metadata"}, "it holds neither"),
        ({"README.md": "---\ntags: [a\n---\n"}, "README.md: "),
        ({"README.md": "---\nmodel-index: [1]\n---\n"}, "README.md: "),
        ({"robustness_report.json": "[]"}, "robustness_report.json: "),
        ({"robustness_report.json": b"\xff\xfe"}, "robustness_report.json: "),
    ],
)
def test_files_that_hold_anything_else_are_told(read, tmp_path, files, reason):
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    results, (problem,) = read(folder)
    assert not results and problem.source == "model" and problem.reason.startswith(reason)
    assert str(tmp_path) not in problem.reason and "\n" not in problem.reason


def test_a_score_that_the_curve_does_not_give_is_not_ranked(read, tmp_path):
    replace(make_report(), expected_robustness=0.99).to_json(tmp_path / "robustness_report.json")
    results, (problem,) = read(tmp_path)
    assert not results and "Its expected robustness is 0.99, but its curve gives" in problem.reason


def test_what_is_no_repository_id_and_a_hub_out_of_reach_are_told(read):
    _, (first, second) = read("a/b/c", "someone/model")
    assert "a/b/c" in first.reason and "Repo id" in first.reason
    assert second.source == "someone/model" and second.reason
