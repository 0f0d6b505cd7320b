"""The tables say what results.json holds, and results.json what was measured."""

import dataclasses
import json
import re

import pytest
from grid_results import converged, make_result, make_segmentation_result
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_robust_ft.experiments.grid import tables
from hf_robust_ft.experiments.grid.summary import summarise
from hf_robust_ft.experiments.grid.tables import render_tables, write_tables
from hf_robust_ft.experiments.paper.numbers import MODELS, fix_and_schedule


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr(tables, "plot_grid", lambda results, folder: [])


def paper_again(eps_255=4, **facts):
    """Results that equal the paper's tables."""
    return [
        make_result(
            cell.model, cell.dataset, f"{eps_255}/255", cell.setting, 0, scores.clean, scores.adversarial, **facts
        )
        for cell, scores in fix_and_schedule().items()
        if cell.eps_255 == eps_255
    ]


def small_grid():
    chosen = []
    for eps in ("4/255", "8/255"):
        for setting, clean in (("standard", 0.95), ("fix", 0.6), ("uniform", 0.8), ("hinge", 0.9)):
            chosen += [make_result(eps=eps, setting=setting, seed=seed, clean=clean + seed / 100) for seed in (0, 1)]
    chosen += [make_result(setting=f"hinge:{start},{end}") for start, end in ((0, 50), (12, 12), (12, 37))]
    return [*chosen, make_result(dataset="flowers", num_samples=200, setting="hinge", clean=0.7)]


def rows(markdown, heading):
    """The table under a heading, as a list of {column: cell}."""
    section = markdown.split(f"{heading}\n")[1].split("\n#")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_the_files_are_written_and_agree(tmp_path):
    markdown = write_tables(small_grid(), tmp_path / "new", {"vit/cub200": "CUDA out of\nmemory"})
    written = {path.name for path in (tmp_path / "new").iterdir()}
    pictures = re.findall(r"\]\((.*?\.png)\)", markdown)
    assert {"tables.md", "results.json", *pictures} == written and len(pictures) == 11
    assert (tmp_path / "new" / "tables.md").read_text(encoding="utf-8") == markdown
    summary = json.loads((tmp_path / "new" / "results.json").read_text(encoding="utf-8"))
    assert render_tables(summary, pictures) == markdown
    assert "- vit/cub200: CUDA out of memory" in markdown


def test_every_number_of_the_score_table_is_the_records(no_pictures, tmp_path):
    markdown = write_tables(small_grid(), tmp_path)
    cells = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["cells"]
    shown = {
        (row["setting"], dataset, score): row[f"{dataset} {score}"]
        for row in rows(markdown, "## Linf 4/255: standard, fix, uniform, hinge")
        for dataset in ("digits", "flowers")
        for score in ("clean", "adv.", "expected")
    }
    for cell in cells:
        if cell["eps"] == "4/255" and ":" not in cell["setting"]:
            for score, column in (("clean", "clean"), ("adversarial", "adv."), ("expected", "expected")):
                expected = f"{100 * cell['mean'][score]:.2f}"
                if cell["sd"]:
                    expected += f" ± {100 * cell['sd'][score]:.2f}"
                assert shown.pop((cell["setting"], cell["dataset"], column)) == expected
    assert len(shown) == 9 and set(shown.values()) == {"-"}  # flowers was run with hinge only


def test_the_papers_results_differ_from_the_paper_by_nothing(no_pictures, tmp_path):
    markdown = write_tables(paper_again(), tmp_path)
    table = rows(markdown, "## Linf 4/255: fix, hinge")
    assert len(table) == 6 * 2 * 3 and list(dict.fromkeys(row["backbone"] for row in table)) == list(MODELS.values())
    for row in table:
        for name in ("clean", "adv."):
            values = {row[column] for column in row if column.endswith(name)}
            assert (values == {"+0.00"}) == (row[""] == "difference")
    swin = next(row for row in table if (row["backbone"], row["setting"], row[""]) == ("swin", "hinge", "paper"))
    assert (swin["stanford_cars clean"], swin["stanford_cars expected"]) == ("84.70", "66.41")
    wins = rows(markdown, "## Wins")
    assert [row["setting"] for row in wins] == ["hinge", "hinge (the paper's table)"]
    assert {(row["clean"], row["adv."], row["expected"]) for row in wins[1:]} == {("30 of 30", "21 of 30", "30 of 30")}
    assert (wins[0]["clean"], wins[0]["adv."]) == ("30 of 30", "21 of 30")
    means = rows(markdown, "### Linf 4/255")
    overall = {row["setting"]: (row["configurations"], row["clean"], row["adv."]) for row in means[:2]}
    assert overall == {"fix": ("30", "38.15", "20.61"), "hinge": ("30", "76.18", "36.04")}
    assert len(means) == 2 * (1 + 6 + 5)
    assert ", the same as ours." in markdown


@pytest.mark.parametrize("other", [{"protocol": "exact"}, {"attack": {"steps": 40}}])
def test_no_difference_across_protocols(no_pictures, tmp_path, other):
    markdown = write_tables(paper_again(**other), tmp_path)
    assert "ours is another, so no difference is taken" in markdown
    assert {row[""] for row in rows(markdown, "## Linf 4/255: fix, hinge")} == {"ours", "paper"}


def test_converged_figures_stand_above_those_after_the_papers_steps(no_pictures, tmp_path):
    results = [converged(each, 0.1, 0.12) for each in paper_again()]
    results[3] = dataclasses.replace(converged(paper_again()[3], 0.2, settled=False))
    markdown = write_tables(results, tmp_path)
    table = rows(markdown, "## Linf 4/255: fix, hinge")
    assert [row[""] for row in table[:4]] == ["converged", "10 steps", "paper", "difference"]
    swin = {row[""]: row for row in table if (row["backbone"], row["setting"]) == ("swin", "hinge")}
    assert [swin[kind]["stanford_cars adv."] for kind in swin] == ["31.20", "43.20", "43.20", "+0.00"]
    assert {row["stanford_cars clean"] for kind, row in swin.items() if kind != "difference"} == {"84.70"}
    odd = results[3]
    assert f"too high: {odd.model} {odd.setting} on {odd.dataset} (1 of 1 runs)." in markdown
    assert ", the same as ours." in markdown and "APGD-auto up to 160" in markdown
    cells = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["cells"]
    assert sum(each["settled"] for each in cells) == len(cells) - 1


def test_fixed_and_doubled_steps_cannot_stand_in_one_table(no_pictures, tmp_path):
    with pytest.raises(ValueError, match=r"different protocols.*APGD-10 .*APGD-auto"):
        write_tables([make_result(), converged(make_result(seed=1), 0.1)], tmp_path)


def test_schedules_of_table_8_stand_beside_fix_and_hinge(no_pictures, tmp_path):
    facts = {"model": "swin", "dataset": "stanford_cars", "num_samples": 1000}
    run = [make_result(setting=setting, **facts) for setting in ("standard", "fix", "hinge", "uniform", "auto")]
    markdown = write_tables(run, tmp_path)
    assert {row["setting"] for row in rows(markdown, "## Linf 4/255: standard, fix, hinge")} == {
        "standard", "fix", "hinge",
    }  # fmt: skip
    others = rows(markdown, "## Linf 4/255: fix, uniform, auto, hinge")
    paper = {row["setting"]: row["stanford_cars adv."] for row in others if row[""] == "paper"}
    assert paper == {"fix": "29.70", "uniform": "35.30", "auto": "38.40", "hinge": "43.20"}


def test_the_split_and_what_was_trained_otherwise_than_the_paper_are_told(no_pictures, tmp_path):
    held_out = [
        dataclasses.replace(each, report=each.report.with_metadata(split="validation")) for each in paper_again()
    ]
    markdown = write_tables(held_out, tmp_path)
    assert "on the validation split" in markdown and "ours is another, so no difference is taken" in markdown
    shorter = [dataclasses.replace(each, configuration={"num_train_epochs": 2.0}) for each in paper_again()]
    markdown = write_tables(shorter, tmp_path)
    assert ", the same as ours. But some of ours were trained otherwise: num_train_epochs 2.0 (paper: 50)." in markdown
    assert "trained otherwise" not in write_tables(small_grid(), tmp_path)


def test_corners_beside_fix_and_hinge_are_compared_with_them(no_pictures, tmp_path):
    run = [make_result(setting=setting) for setting in ("fix", "hinge")]
    wins = rows(write_tables([*run, make_result(setting="hinge:12,30", clean=0.9)], tmp_path), "## Wins")
    against = {row["over"]: row["clean"] for row in wins if row["setting"] == "hinge:12,30"}
    assert against == {"fix": "1 of 1", "hinge": "1 of 1"}


def test_the_ablation_in_the_form_of_table_7(no_pictures, tmp_path):
    facts = {"model": "swin", "dataset": "stanford_cars"}
    run = [
        make_result(setting=setting, eps=eps, **facts)
        for setting in ("hinge:12,37", "hinge:5,50", "hinge:12,12", "hinge:1,2")
        for eps in ("4/255", "8/255")
    ]
    table = rows(write_tables(run, tmp_path), "## T1 and T2, swin on stanford_cars")
    ours = [(row["T1"], row["T2"]) for row in table if row[""] == "ours"]
    assert ours == [("1", "2"), ("5", "50"), ("12", "12"), ("12", "37")]
    assert {row["T1"] for row in table if row[""] != "ours"} == {"5", "12"}  # (1, 2) is not in the paper
    jump = next(row for row in table if (row["T1"], row["T2"], row[""]) == ("12", "12", "paper"))
    assert (jump["4/255 clean"], jump["8/255 expected"]) == ("1.90", "1.28")


def test_synonyms_are_one_setting(no_pictures, tmp_path):
    one = write_tables([make_result(setting="sched"), make_result(setting="constant")], tmp_path)
    assert one == write_tables([make_result(setting="hinge"), make_result(setting="fix")], tmp_path)
    with pytest.raises(ValueError, match=r"Two results for .* hinge, seed 0"):
        write_tables([make_result(setting="sched"), make_result(setting="hinge")], tmp_path)


def test_tests_and_missing_cells_are_told(no_pictures, tmp_path):
    markdown = write_tables(small_grid(), tmp_path)
    assert "nan" not in markdown
    seeds = rows(markdown, "### Pairs are seeds")
    same = next(row for row in seeds if (row["setting"], row["minus"], row["eps"]) == ("hinge", "fix", "4/255"))
    assert same["clean"] == "+30.00 (the same difference in every seed: no test)" and same["pairs"] == "2"
    assert "Not tested: " in markdown
    line = "- efficientnet_lite0 / flowers / 4/255: standard, fix, uniform (seeds 0, 1); hinge (seed 1)"
    assert line in markdown


def test_costs_are_means_of_runs_and_shares_of_hinges(no_pictures, tmp_path):
    run = [make_result(setting="hinge", attack_passes=4000), make_result(setting="hinge", seed=1, attack_passes=6000)]
    run += [make_result(setting="fix", attack_passes=10_000), make_result(setting="standard", attack_passes=0)]
    costs = {row["setting"]: row for row in rows(write_tables(run, tmp_path), "## Cost")}
    assert [costs[each]["attack passes"] for each in ("standard", "fix", "hinge")] == ["0", "10,000", "5,000"]
    assert [costs[each]["attack, % of hinge's"] for each in ("standard", "fix", "hinge")] == ["0.0", "200.0", "100.0"]
    assert costs["hinge"]["runs"] == "2" and costs["hinge"]["training (s)"] == "100.5"


def test_a_grid_of_which_everything_failed(tmp_path):
    markdown = write_tables([], tmp_path, {"vit": "no space left"})
    assert markdown == "# Results of the grid\n\n## Failed cells\n\n- vit: no space left\n"
    with pytest.raises(ValueError, match="no finished cell to tabulate"):
        write_tables([], tmp_path)


def test_what_cannot_be_compared_leaves_no_files(tmp_path):
    with pytest.raises(ValueError, match="different norms"):
        write_tables([make_result(), make_result(norm="L2", eps="0.5")], tmp_path / "new")
    assert not (tmp_path / "new").exists()


@settings(max_examples=25)
@given(
    st.dictionaries(
        st.tuples(
            st.sampled_from(["vit", "digits_net"]),
            st.sampled_from(["digits", "cub200"]),
            st.sampled_from(["4/255", "8/255", "0.1"]),
            st.sampled_from(["standard", "fix", "hinge", "mine", "hinge:12,37"]),
            st.integers(0, 2),
        ),
        st.tuples(st.integers(0, 360), st.integers(0, 360)).map(lambda pair: sorted(pair, reverse=True)),
        min_size=1,
        max_size=12,
    ),
    st.randoms(),
)
def test_any_part_of_a_grid_can_be_tabulated_in_any_order(cells, random):
    results = [
        make_result(*cell, clean=correct[0] / 360, adversarial=correct[1] / 360) for cell, correct in cells.items()
    ]
    summary = summarise(results, {})
    markdown = render_tables(summary)
    json.dumps(summary, allow_nan=False)
    assert sum(len(each["seeds"]) for each in summary["cells"]) == len(results)
    random.shuffle(results)
    assert render_tables(summarise(results, {})) == markdown


def test_masks_have_a_table_for_each_of_their_scores(tmp_path):
    cells = [
        make_segmentation_result(setting, seed, iou + seed / 50, settled=setting == "fix" or seed > 0)
        for setting, iou in (("fix", 0.4), ("hinge", 0.8))
        for seed in (0, 1, 2)
    ]
    for each in cells:
        each.to_json(tmp_path / "cell.json")
        assert type(each).from_json(tmp_path / "cell.json") == each
    markdown = write_tables(cells, tmp_path / "new")
    hinge = {
        score: {row[""]: row for row in rows(markdown, f"## Linf 4/255: fix, hinge, {score}")[2:]}
        for score in ("mean IoU", "pixel accuracy")
    }
    assert list(hinge["mean IoU"]) == ["converged", "10 steps"]
    shown = [hinge["mean IoU"][kind]["digits_scenes adv."] for kind in ("converged", "10 steps")]
    assert shown == ["52.00 ± 2.00", "62.00 ± 2.00"]
    assert hinge["pixel accuracy"]["converged"]["digits_scenes clean"] == "91.00 ± 1.00"
    assert markdown.count("too high: efficientnet_lite0 hinge on digits_scenes (1 of 3 runs).") == 2
    assert "the paper's table" not in markdown, "the paper has no masks"
    (won,) = rows(markdown, "## Wins, mean IoU")
    assert (won["setting"], won["adv."]) == ("hinge", "1 of 1")
    pictures = {path.name for path in (tmp_path / "new").glob("*.png")}
    kinds = ("by_eps", "scores", "training", "frontier")
    assert pictures == {f"{score}_{kind}_4_255.png" for score in ("mean_iou", "pixel_accuracy") for kind in kinds}
    with pytest.raises(ValueError, match="different tasks cannot stand in one table"):
        write_tables([*cells, make_result()], tmp_path / "both")
