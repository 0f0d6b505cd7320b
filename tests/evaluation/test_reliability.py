"""When a report's robust figures are called doubtful, and that every place that shows them says so."""

import dataclasses
import json

import pytest
from huggingface_hub import ModelCard
from page_runs import make_report
from passed_checks import passed_checks

from hf_robust_ft import RobustnessReport
from hf_robust_ft.cli import main as cli
from hf_robust_ft.evaluation.reliability import count_reliable, reason_names, reliability_sentence
from hf_robust_ft.evaluation.trust_verdicts import OPENINGS
from hf_robust_ft.experiments.grid.tables import _introduction
from hf_robust_ft.hub.leaderboard import Leaderboard, Result, to_html, to_markdown
from hf_robust_ft.hub.leaderboard.results import from_eval_results
from hf_robust_ft.reporting import render_model_card
from hf_robust_ft.reporting.page import figures
from hf_robust_ft.reporting.page.render import render_page
from hf_robust_ft.reporting.page.runs import Run
from hf_robust_ft.reporting.plots import plot_curves

ROUND = {"steps": 10, "adversarial_accuracy": 0.5, "expected_robustness": 0.7, "accuracies": [0.5]}
UNSETTLED = {"limit": 40, "settled": False, "rounds": [ROUND, {**ROUND, "steps": 40}]}
ROBUST_SCORES = ("adversarial_accuracy", "expected_robustness")


def report_with(checks=None, **changes):
    """A report whose checks all passed, changed."""
    checks = passed_checks() if checks is None else checks
    return dataclasses.replace(make_report(), checks=[dataclasses.asdict(check) for check in checks], **changes)


def without(*names):
    return [check for check in passed_checks() if check.name not in names]


def autoattacked(found, samples=50):
    """A report of which AutoAttack fools so many images that it counts as robust, out of the first ones."""
    report = report_with()
    stands = sum(eps is None for eps in report.smallest_epsilons[:samples])
    return dataclasses.replace(report, autoattack_samples=samples, autoattack_accuracy=(stands - found) / samples)


def closed_by(square, samples=100):
    """A report of protocol reliable, in which Square fools so many of the images that attacks by gradients leave."""
    standing = {"FollowUp": 40, "SiftedTargets": 38, "Square, 300 queries": 38 - square}
    closing = [{"attack": name, "adversarial_accuracy": count / samples} for name, count in standing.items()]
    settled = {**UNSETTLED, "settled": True, "closing": closing}
    return report_with(convergence=settled, protocol="reliable", num_samples=samples)


DOUBTFUL = {
    **{name: (report_with(passed_checks(name)), [name]) for name in OPENINGS},
    "two": (report_with(passed_checks("alone", "gradients")), ["gradients", "alone"]),
    "not_checked": (report_with([]), ["not_checked"]),
    "unsettled": (report_with(passed_checks("converged"), convergence=UNSETTLED), ["converged"]),
    "unsettled_unchecked": (report_with([], convergence=UNSETTLED), ["not_checked", "converged"]),
    "six_checks": (report_with(without("second_opinion", "alone")), ["alone", "second_opinion"]),
    "fixed_steps": (report_with(without("converged")), ["converged"]),
    "one_check": (report_with(without(*list(OPENINGS)[1:])), list(OPENINGS)[1:]),
    "half": (report_with().with_metadata(evaluated_in="bf16"), ["half_precision"]),
    "autoattack": (autoattacked(2), ["autoattack"]),
    "search_alone": (closed_by(2), ["square"]),
    "autoattack_of_all": (report_with(autoattack_samples=60, autoattack_accuracy=0.0), ["autoattack"]),
    "autoattack_alone": (
        report_with(autoattack_samples=60, autoattack_accuracy=0.0, smallest_epsilons=[]), ["autoattack"],
    ),
}  # fmt: skip
RELIABLE = {
    "passed": report_with(),
    "settled": report_with(without("converged"), convergence={**UNSETTLED, "settled": True}),
    "several_attacks": report_with(without("second_opinion", "converged"), protocol="reliable"),
    "autoattack": autoattacked(0),
    "autoattack_finds_one": autoattacked(1),
    "search_alone_finds_one": closed_by(1),
    "nothing_attacked": report_with([], epsilons=[0.0], accuracies=[0.9]),
}


@pytest.fixture(autouse=True)
def no_charts(monkeypatch):
    monkeypatch.setattr(figures, "get_plotlyjs", lambda: "const Plotly = {};")


@pytest.mark.parametrize("kind", DOUBTFUL)
def test_what_makes_figures_doubtful(kind):
    report, names = DOUBTFUL[kind]
    assert report.reliability["verdict"] == "doubtful" and reason_names(report.reliability) == names
    sentence = reliability_sentence(report)
    assert sentence.startswith("Reliability: doubtful. Robust figures may be too high: ") and "\n" not in sentence
    assert all(f"({name})" in sentence for name in names) and ". To settle it, " in sentence


@pytest.mark.parametrize("kind", RELIABLE)
def test_what_is_no_reason_for_doubt(kind):
    report = RELIABLE[kind]
    assert report.reliability == {"verdict": "ok", "reasons": []}
    assert reliability_sentence(report).startswith("Reliability: ok")


def test_a_model_that_is_not_attacked_is_doubtful_only_where_a_check_failed():
    report = report_with(
        passed_checks("deterministic"), epsilons=[0.0], accuracies=[0.9], metadata={"evaluated_in": "b"}
    )
    assert reason_names(report.reliability) == ["deterministic"]


def test_several_attacks_replace_two_checks_and_no_others():
    report = report_with(without("second_opinion", "converged", "alone"), protocol="reliable")
    assert report.reliability["reasons"] == ["alone: not checked"]


def test_the_cure_fits_the_reason():
    words = {
        "second_opinion": "--protocol reliable",
        "half": "fp32",
        "unsettled": "--attack_steps_limit",
        "deterministic": "evaluation mode",
        "not_checked": "run the trust checks",
        "six_checks": "run the trust checks",
    }
    for kind, word in words.items():
        assert word in reliability_sentence(DOUBTFUL[kind][0]).partition("To settle it, ")[2], kind
    masked = report_with(passed_checks("gradients"), protocol="reliable")  # which needs no telling to use it
    assert "--protocol" not in reliability_sentence(masked)


@pytest.mark.parametrize("name", ["gradients", None])
def test_autoattacks_figure_has_the_verdict_but_for_what_it_settles_itself(name):
    checks = passed_checks(*filter(None, [name]))
    report = dataclasses.replace(autoattacked(5), checks=[dataclasses.asdict(check) for check in checks])
    assert reason_names(report.reliability) == [*filter(None, [name]), "autoattack"]
    card, page = render_model_card(report), render_page([Run("a", report)])
    (entry,) = [each for each in ModelCard(card).data.eval_results if each.metric_type == "autoattack_accuracy"]
    assert entry.metric_args["reliability"] == (f"doubtful: {name}" if name else "ok")
    assert ("doubtful" in entry.metric_name) == (name is not None)
    row = next(line for line in card.splitlines() if line.startswith("| AutoAttack"))
    assert (" (doubtful) |" in row) == ("of 50 images, the first of the data (doubtful)" in page) == (name is not None)


@pytest.mark.parametrize("kind", DOUBTFUL)
def test_every_place_says_doubtful_and_why(kind, tmp_path, capsys):
    report, names = DOUBTFUL[kind]
    report.to_json(tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_text())["reliability"]
    assert written["verdict"] == "doubtful" and [reason.split(":")[0] for reason in written["reasons"]] == names
    short = f"doubtful: {', '.join(names)}"
    assert short in str(report)
    cli._tell_verdict(report)
    told = capsys.readouterr().out
    assert told.splitlines()[-1] == reliability_sentence(report) and not told.startswith("Robust")
    board = Leaderboard.of([Result.of_report(report, "a")])
    assert f"| **{short}**" in to_markdown(board) and short in to_html(board)
    facts = {"training": {"eps": "8/255"}, **report.metadata}
    card = render_model_card(dataclasses.replace(report, metadata=facts))
    head, results = card.split("## Results")[0], card.split("## Results")[1]
    assert f"**Reliability: doubtful.** {reliability_sentence(report).partition('doubtful. ')[2]}\n" in head
    # One way of measuring, or two where steps were doubled, three with attacks of other kinds; the curve, and the two
    # columns of the classes.
    marked = results.count(" (doubtful) |") - results.count("AutoAttack (doubtful) |")
    ways = 1 if not report.convergence else 3 if "closing" in report.convergence else 2
    assert marked == ways + 3
    assert "# Robust image" not in card and "tamper with them" not in card
    robust = [each for each in ModelCard(card).data.eval_results if each.metric_type in ROBUST_SCORES]
    assert len(robust) == 2 and all("; doubtful)" in each.metric_name for each in robust)
    assert all(each.metric_args["reliability"] == short for each in robust)
    page = render_page([Run("a", report)])
    assert '<td data-label="Reliability"><strong class="badge doubtful">doubtful</strong></td>' in page
    assert "<strong>a.</strong> Reliability: doubtful. Robust figures may be too high" in page


def test_every_place_says_ok(capsys):
    report = report_with()
    card, page = render_model_card(report), render_page([Run("a", report)])
    assert "**Reliability: ok.** All 8 trust checks passed" in card and "doubtful" not in card
    assert '<strong class="badge">ok</strong>' in page and 'badge doubtful"' not in page
    assert str(report).count("reliability            ok") == 1
    cli._tell_verdict(report)
    assert capsys.readouterr().out.splitlines()[-1].startswith("Reliability: ok. All 8 trust checks passed")
    results = [each for each in ModelCard(card).data.eval_results if each.metric_type in ROBUST_SCORES]
    assert all(each.metric_args["reliability"] == "ok" and "doubtful" not in each.metric_name for each in results)


def test_a_robust_model_is_called_so_in_the_last_lines_unless_that_is_doubtful(capsys):
    for checks, lines in ((), 2), (([],), 1):
        report = dataclasses.replace(report_with(*checks), adversarial_accuracy=0.9, accuracies=[0.95, 0.92, 0.91, 0.9])
        cli._tell_verdict(report)
        told = capsys.readouterr().out.splitlines()
        assert len(told) == lines and told[0].startswith("Robust at Linf 8/255: 90.0%") == (lines == 2)


def test_pictures_name_a_doubtful_curve(tmp_path, monkeypatch):
    named = []
    monkeypatch.setattr("hf_robust_ft.reporting.plots._save", lambda figure, path: named.append(figure))
    plot_curves({"a": report_with(), "b": report_with([])}, tmp_path / "curve.png")
    first, second = [text.get_text() for text in named[0].axes[0].get_legend().get_texts()]
    assert "doubtful" not in first and second.endswith(" (doubtful)")


@pytest.mark.parametrize("sorted_by", ["expected_robustness", "adversarial_accuracy", "clean_accuracy"])
def test_doubtful_results_rank_below_all_others(sorted_by):
    reports = {"better": report_with(passed_checks("gradients")), "worse": report_with(), "silent": report_with([])}
    results = [
        dataclasses.replace(Result.of_report(report, name), **{sorted_by: score})
        for (name, report), score in zip(reports.items(), (0.9, 0.1, None), strict=True)
    ]
    (ranking,) = Leaderboard.of(results, sorted_by=sorted_by).rankings
    assert [result.source for result in ranking.results] == ["worse", "better", "silent"]
    assert ranking.places == [1, 2, 3]


@pytest.mark.parametrize("told", ["ok", "doubtful: gradients", None, "fine", 7])
def test_a_card_alone_is_ranked_by_what_it_says(told):
    results = ModelCard(render_model_card(report_with())).data.eval_results
    for each in results:
        each.metric_args.pop("reliability", None)
        if told is not None and each.metric_type in ROBUST_SCORES:
            each.metric_args["reliability"] = told
    (found,) = from_eval_results(results, "a/b")
    assert found.reliability == (told if told in ("ok", "doubtful: gradients") else "doubtful: not told")
    assert found.is_reliable == (told == "ok")


def test_the_verdict_follows_from_the_rest_whatever_a_file_claims(tmp_path):
    path = tmp_path / "report.json"
    content = dataclasses.asdict(report_with(passed_checks("gradients")))
    for claimed in ({"verdict": "ok", "reasons": []}, None):  # a liar's, and one of before there was a verdict
        content.pop("reliability") if claimed is None else content.update(reliability=claimed)
        path.write_text(json.dumps(content))
        assert reason_names(RobustnessReport.from_json(path).reliability) == ["gradients"]
    measured = report_with().with_metadata(evaluated_in="fp16")
    assert reason_names(measured.reliability) == ["half_precision"]


@pytest.mark.parametrize(
    "changed", [{"checks": [1]}, {"checks": [{}]}, {"epsilons": []}, {"convergence": {"limit": 1}}]
)
def test_a_file_of_other_values_is_refused(tmp_path, changed):
    (tmp_path / "report.json").write_text(json.dumps(dataclasses.asdict(report_with()) | changed))
    with pytest.raises(ValueError, match=r"report\.json is no robustness report: "):
        RobustnessReport.from_json(tmp_path / "report.json")


def test_many_runs_are_counted_in_one_sentence():
    found = [report.reliability for report in (report_with(), report_with([]), report_with([]), autoattacked(2))]
    sentence = count_reliable(found)
    assert "doubtful in 3 of 4 runs (not_checked 2, autoattack 1)" in sentence
    assert count_reliable(found[:1]) == "Reliability: ok in all runs (1)."
    summary = {"images": {"digits": 9}, "missing": [], "reliability": sentence}
    assert sentence in _introduction(summary)
    assert len(_introduction({**summary, "reliability": None})) == 1  # of before there was a verdict
