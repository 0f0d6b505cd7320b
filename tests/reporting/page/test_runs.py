import pytest
from page_runs import LOG_HISTORY, make_pairs, make_report, write_run
from PIL import Image

from hf_robust_ft.reporting.page.runs import Timeline, read_runs


def test_a_folder_gives_report_training_and_examples(tmp_path):
    report = make_report()
    folder = write_run(tmp_path / "hinge", report, pairs=make_pairs(), log_history=LOG_HISTORY)
    alone = tmp_path / "alone.json"
    report.with_metadata(split="validation").to_json(alone)
    first, second = read_runs([folder, alone])
    assert (first.name, second.name) == ("hinge", "alone")
    assert first.report == report and len(first.examples.clean) == 3
    assert first.timeline.clean == [(1.0, 0.5), (2.0, 0.75)] and first.timeline.adversarial == [(1.0, 0.1), (2.0, 0.25)]
    assert first.timeline.eps == [(0.0, 0.0), (1.0, 0.0), (2.0, 4 / 255)]
    assert not second.timeline and second.examples is None


def test_training_is_read_from_the_newest_checkpoint_and_from_plain_trainer(tmp_path):
    folder = write_run(tmp_path / "run", make_report())
    for step, accuracy in ((9, 0.1), (10, 0.2)):
        checkpoint = folder / f"checkpoint-{step}"
        checkpoint.mkdir()
        entry = f'{{"eval_accuracy": {accuracy}, "epoch": 1.0}}'
        (checkpoint / "trainer_state.json").write_text(f'{{"log_history": [{entry}]}}')
    (run,) = read_runs([folder])
    assert run.timeline == Timeline(clean=[(1.0, 0.2)])


def test_strips_of_an_older_evaluation_are_shown(tmp_path):
    folder = write_run(tmp_path / "run", make_report())
    (folder / "examples").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "examples" / "example_000.png")
    (run,) = read_runs([folder])
    assert [strip.name for strip in run.strips] == ["example_000.png"]


def test_bad_input_is_refused_by_name(tmp_path):
    folder = write_run(tmp_path / "a" / "run", make_report())
    other = write_run(tmp_path / "b" / "run", make_report(1))
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.json").write_text("no report")
    damaged = write_run(tmp_path / "damaged", make_report(), log_history=[])
    (damaged / "trainer_state.json").write_text("[")
    for paths, names, message in (
        (
            [tmp_path / "empty"],
            None,
            "empty holds no robustness_report.json, nor do folders in it. Measure it: hf-robust-ft eval",
        ),
        ([tmp_path / "none"], None, "There is no file or folder .*none"),
        ([tmp_path / "text.json"], None, "text.json is no JSON file"),
        ([damaged], None, "trainer_state.json is no trainer_state.json"),
        ([folder, folder / "robustness_report.json"], None, "named twice"),
        ([folder, other], ["same", "same"], "as many different names"),
        ([folder, other], ["one"], "2 runs need as many different names"),
        ([], None, "Name at least one folder"),
    ):
        with pytest.raises(ValueError, match=message):
            read_runs(paths, names)
    assert [run.name for run in read_runs([folder, other])] == ["a/run", "b/run"]
    assert [run.name for run in read_runs([folder, other], ["x", "y"])] == ["x", "y"]
