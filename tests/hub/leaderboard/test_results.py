from dataclasses import replace

import pytest
from huggingface_hub import EvalResult, ModelCard

from hf_robust_ft import APGD, ThreatModel
from hf_robust_ft.cli.main import main
from hf_robust_ft.evaluation.scoring import build_report
from hf_robust_ft.hub.leaderboard import Leaderboard, Problem, Result, to_html, to_markdown
from hf_robust_ft.hub.leaderboard.results import ROUNDING, SCORES, from_eval_results
from hf_robust_ft.hub.leaderboard.sources import read_tagged
from hf_robust_ft.reporting import render_model_card
from hf_robust_ft.reporting.comparability import DEFAULT_GRID, Setting

SETTING = Setting("digits", "test", "100", "Linf", "8/255", "paper", "APGD-CE-10")
ARGS = {"norm": "Linf", "eps": "8/255", "protocol": "paper", "attack": "APGD-CE-10", "samples": 100}


def entry(metric_type, value, args=ARGS, **changes):
    where = {"dataset_type": "digits", "dataset_name": "digits", "dataset_split": "test"}
    return EvalResult(
        task_type="image-classification", metric_type=metric_type, metric_value=value, metric_args=args,
        **(where | changes),
    )  # fmt: skip


def test_both_ways_to_write_clean_accuracy_are_read():
    robust = [entry("adversarial_accuracy", 0.4), entry("expected_robustness", 0.6)]
    for clean in (
        entry("accuracy", 0.9, {"samples": 100}, metric_name="Clean accuracy"),
        entry("clean_accuracy", 0.9),
        entry("clean_accuracy", 0.9, None),
    ):
        found = from_eval_results([clean, *robust], "a/b")
        assert found == [Result("a/b", SETTING, 0.6, 0.4, 0.9)]
    elsewhere = entry("clean_accuracy", 0.9, dataset_split="validation")
    assert from_eval_results([elsewhere, entry("accuracy", 0.1), *robust], "a/b")[0].clean_accuracy is None


@pytest.mark.parametrize(
    "attack",
    [APGD(random_start=False), APGD(steps=40, loss="dlr", restarts=5), APGD(random_start=True)],
    ids=str,
)
@pytest.mark.parametrize(
    "facts",
    [{}, {"dataset": "a/b", "dataset_config": "small", "split": "test"}, {"dataset_name": "Colours"}],
    ids=["unnamed", "id", "name"],
)
@pytest.mark.parametrize(("norm", "eps", "protocol"), [("Linf", "8/255", "paper"), ("L2", 0.5, "exact")])
def test_a_card_names_the_setting_that_its_report_names(attack, facts, norm, eps, protocol):
    threat_model = ThreatModel(norm, eps)
    values = [each * threat_model.eps for each in (0, 0.5, 1, float("inf"))]
    report = build_report(
        [0] * 4, values, [1] * 4, threat_model=threat_model, attack=attack, protocol=protocol,
        epsilons=[0, threat_model.eps / 2, threat_model.eps], metadata=facts,
    )  # fmt: skip
    measured = Result.of_report(report, "a/b")
    (told,) = from_eval_results(ModelCard(render_model_card(report)).data.eval_results, "a/b")
    grid = {"grid": measured.setting.grid}  # cards tell none
    assert Setting(**vars(told.setting) | grid) == measured.setting
    for name in SCORES:
        assert getattr(told, name) == pytest.approx(getattr(measured, name), abs=ROUNDING)


def test_a_card_with_several_settings_gives_several_results():
    exact = ARGS | {"protocol": "exact", "eps": 8 / 255}
    found = from_eval_results([entry("expected_robustness", 0.6), entry("expected_robustness", 0.5, exact)], "a/b")
    assert [(result.setting.protocol, result.setting.eps) for result in found] == [
        ("paper", "8/255"),
        ("exact", "8/255"),
    ]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (entry("expected_robustness", 0.6, {"norm": "Linf"}), "expected robustness does not tell eps, protocol"),
        (entry("expected_robustness", 0.6, None), "does not tell norm, eps, protocol"),
        (entry("expected_robustness", 60.0), "expected robustness is 60.0, not a share"),
        (entry("adversarial_accuracy", "0.4"), "adversarial accuracy is '0.4'"),
        (entry("expected_robustness", float("nan")), "is nan"),
        (entry("expected_robustness", 0.6, ARGS | {"norm": "L7"}), "Unknown norm"),
    ],
)
def test_figures_that_mean_nothing_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        from_eval_results([changed], "a/b")


def test_equal_scores_share_a_place_and_missing_ones_come_last():
    results = [Result(name, SETTING, score) for name, score in (("d", None), ("c", 0.5), ("b", 0.5), ("a", 0.9))]
    (ranking,) = Leaderboard.of(results).rankings
    assert [result.source for result in ranking.results] == ["a", "b", "c", "d"] and ranking.places == [1, 2, 2, 4]


@pytest.mark.parametrize(
    ("name", "value"),
    [("norm", "L2"), ("eps", "4/255"), ("protocol", "exact"), ("attack", "APGD-CE-100"), ("dataset", "cub"),
     ("split", "validation"), ("images", "99"), ("grid", "3 points")],
)  # fmt: skip
def test_nothing_is_ranked_across_settings(name, value):
    other = Setting(**vars(SETTING) | {name: value})
    results = [Result("a", SETTING, 0.5), Result("b", other, 0.6)]
    assert [len(ranking.results) for ranking in Leaderboard.of(results).rankings] == [1, 1]
    with pytest.raises(ValueError, match=rf"a and b differ in {name} \("):
        Leaderboard.of(results, one_ranking=True)


def test_a_choice_of_settings():
    other = Setting(**vars(SETTING) | {"eps": "4/255"})
    results = [Result("a", SETTING, 0.5), Result("b", other, 0.6)]
    board = Leaderboard.of(results, wanted={"eps": str(8 / 255), "norm": None}, one_ranking=True)
    assert [result.source for result in board.rankings[0].results] == ["a"] and board.left_out == 1
    with pytest.raises(ValueError, match=r"No result has eps 1/255\. There are: digits"):
        Leaderboard.of(results, wanted={"eps": "1/255"})
    with pytest.raises(ValueError, match=r"No result could be read\. x/y: gone"):
        Leaderboard.of([], [Problem("x/y", "gone")])


def test_text_of_strangers_stays_text():
    evil = "<script>alert(1)</script>|x](y)\n# z"
    setting = Setting(**vars(SETTING) | {"dataset": evil})
    board = Leaderboard.of([Result("a/b", setting, 0.5, url="https://hub/a/b")], [Problem(evil, evil)])
    markdown, page = to_markdown(board), to_html(board)
    assert "<script" not in markdown and "\n# z" not in markdown and r"\|x\](y)" in markdown
    assert "<script" not in page and "script-src 'none'" in page.replace("&#39;", "'")


def test_the_card_of_a_refused_report_is_not_ranked_in_its_place(tmp_path, capsys):
    threat_model = ThreatModel("Linf", "8/255")
    report = build_report(
        [0, 1], [0.0, float("inf")], [1, 0], threat_model=threat_model, epsilons=[0, threat_model.eps], attack=APGD()
    )
    for name, told in (("honest", report), ("boasting", replace(report, expected_robustness=0.99))):
        (tmp_path / name).mkdir()
        told.to_json(tmp_path / name / "robustness_report.json")
        (tmp_path / name / "README.md").write_text(render_model_card(told))
    main(["leaderboard", str(tmp_path / "honest"), str(tmp_path / "boasting")])
    printed = capsys.readouterr().out
    assert "99.00 %" not in printed and "boasting: robustness_report.json: Its expected robustness is 0.99" in printed


def test_an_unreadable_eps_is_refused_before_the_hub_is_asked(monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.HfApi.list_models", lambda *args, **options: pytest.fail("asked"))
    with pytest.raises(SystemExit) as stop:
        main(["leaderboard", "--eps", "four"])
    assert stop.value.code == 2 and "eps='four' is neither a number nor a fraction" in capsys.readouterr().err


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_that_reads_nothing_is_refused(limit):
    with pytest.raises(ValueError, match=f"limit must be at least 1, got {limit}"):
        read_tagged(None, limit=limit)


def of_images(hashes, **facts):
    return build_report(
        [0] * 4, [0, 0.01, float("inf"), float("inf")], [1] * 4, threat_model=ThreatModel("Linf", "8/255"),
        attack=APGD(random_start=False), epsilons=[0, 8 / 255], image_hashes=hashes,
        metadata={"dataset": "digits", "split": "test"} | facts,
    )  # fmt: skip


def test_two_samples_of_as_many_images_do_not_rank_together():
    first, second = [f"{number:016x}" for number in range(4)], [f"{number:016x}" for number in range(1, 5)]
    reports = {
        "here": of_images(first), "again": of_images(first[::-1]), "elsewhere": of_images(second),
        "old": of_images([]), "older": of_images([]),
    }  # fmt: skip
    results = [Result.of_report(report, name) for name, report in reports.items()]
    board = Leaderboard.of(results)
    groups = sorted(sorted(result.source for result in ranking.results) for ranking in board.rankings)
    assert groups == [["again", "here"], ["elsewhere"], ["old", "older"]]
    text = to_markdown(board)
    assert f", images {reports['here'].image_digest}\n" in text and ", which images is not stated\n" in text
    with pytest.raises(ValueError, match=r"differ in image_set \(\w{16}, \w{16}\)"):
        Leaderboard.of(results[:3], one_ranking=True)


def test_models_of_other_input_sizes_are_compared_by_the_files_of_their_images():
    first, second = [f"{number:016x}" for number in range(4)], [f"{number:016x}" for number in range(4, 8)]
    small, large = of_images(first, source_digest="a" * 16), of_images(second, source_digest="a" * 16)
    other = of_images(first, source_digest="b" * 16)
    assert Setting.of(small) == Setting.of(large) != Setting.of(other)


def test_a_card_names_the_images_of_its_report():
    report = of_images([f"{number:016x}" for number in range(4)])
    (told,) = from_eval_results(ModelCard(render_model_card(report)).data.eval_results, "a/b")
    assert told.setting.image_set == report.image_digest and told.clean_accuracy == report.clean_accuracy


def test_digests_of_files_and_of_pixels_have_a_name_each_and_older_cards_are_read():
    report = of_images([f"{number:016x}" for number in range(4)], source_digest="a" * 16)
    entries = ModelCard(render_model_card(report)).data.eval_results
    for entry in entries:
        told = entry.metric_args
        assert (told["source_digest"], told["image_digest"]) == ("a" * 16, report.image_digest)
    (new,) = from_eval_results(entries, "a/b")
    for entry in entries:  # as older versions wrote it
        entry.metric_args["image_digest"] = entry.metric_args.pop("source_digest")
    (old,) = from_eval_results(entries, "a/b")
    measured = replace(Setting.of(report), grid=DEFAULT_GRID)  # which cards do not tell
    assert new.setting == old.setting == measured and old.clean_accuracy == report.clean_accuracy
