"""Cells run once, go on where they were cut off, and fail alone."""

import json

import pytest
from filelock import FileLock
from killed import killed_once_saved
from scene_folders import SIDE, write_scenes
from tiny_segmenters import segformer
from transformers import SegformerImageProcessor

import hf_robust_ft.experiments.grid.run_cell as cell_runs
from hf_robust_ft.cli.main import main
from hf_robust_ft.evaluation.segmentation.report import SegmentationReport
from hf_robust_ft.experiments.grid.results import MeasuredCell
from hf_robust_ft.experiments.grid.run_cell import CellInProgress, is_in_progress, run_cell
from hf_robust_ft.runs.fine_tune import build_trainer, prepare_run
from hf_robust_ft.training.probed_head import ProbedHead

TRAINED = 2 * 43  # images: two epochs of 48, of which 5 are split off for validation
STANDARD, FIX = (f"tinyvit.colours.Linf.16_255.{setting}.seed0" for setting in ("standard", "fix"))


@pytest.fixture
def trained(monkeypatch):
    """The names of the cells that were trained, in turn."""
    names, train = [], cell_runs._train

    def noting(job, *more):
        names.append(job.cell.name)
        return train(job, *more)

    monkeypatch.setattr(cell_runs, "_train", noting)
    return names


def test_a_grid_is_run_once_and_guarded(grid_argv, trained, kept, tmp_path, capsys):
    main(grid_argv)
    folder = tmp_path / "grid"
    assert trained == [STANDARD, FIX]
    standard, fix = kept(STANDARD), kept(FIX)
    assert standard["passes"] == {"training": fix["passes"]["training"], "attack": 0, "forward": 0}
    assert fix["passes"]["attack"] == fix["passes"]["forward"] == fix["passes"]["training"] == TRAINED
    assert fix["validation"]["epochs"] == [1, 2] and fix["validation"]["eps"] == [16 / 255] * 2
    assert standard["measured"]["epsilons"] == pytest.approx([0, 8 / 255, 16 / 255])
    assert list((folder / "unfinished").glob("*/")) == [] and not (folder / "failed").exists()
    table = (folder / "tables.md").read_text()
    assert table.strip() in capsys.readouterr().out
    assert str(tmp_path) not in table + (folder / "grid.json").read_text() + (folder / f"cells/{FIX}.json").read_text()

    before = (folder / f"cells/{FIX}.json").read_bytes()
    main([*grid_argv, "--seeds", "0", "1"])
    assert len(trained) == 4 and (folder / f"cells/{FIX}.json").read_bytes() == before
    with pytest.raises(SystemExit):
        main([*grid_argv, "--learning_rate", "1e-4"])
    error = capsys.readouterr().err
    assert f"the cell {STANDARD} of another configuration: learning_rate 0.001 there, 0.0001 now" in error
    assert len(trained) == 4


def test_a_cell_is_what_train_gives(make_options, flags, tmp_path):
    (job,) = make_options(settings=["fix"]).grid(flags).jobs()
    result = run_cell(job)
    arguments = job.parse()
    arguments.training.output_dir, arguments.training.save_strategy = str(tmp_path / "single"), "no"
    trainer = build_trainer(arguments.model, arguments.training, prepare_run(*arguments))
    trainer.train()
    losses = [entry["eval_clean_accuracy"] for entry in trainer.state.log_history if "eval_clean_accuracy" in entry]
    assert result.validation["accuracies"] == losses


def test_a_cell_with_a_probe_counts_both_phases_and_goes_on_between_them(make_options, flags, monkeypatch):
    probe = ["--probe_epochs", "2", "--probe_learning_rate", "0.5"]

    def killed(*args):
        raise KeyboardInterrupt

    (job,) = make_options(settings=["fix"]).grid([*flags, *probe]).jobs()
    with monkeypatch.context() as patched:
        patched.setattr(ProbedHead, "load_into", killed)
        with pytest.raises(KeyboardInterrupt):
            run_cell(job)
    written = (job.work / "probe" / "head.safetensors").stat().st_mtime_ns
    with monkeypatch.context() as patched:
        patched.setattr(cell_runs, "_measure", killed)
        with pytest.raises(KeyboardInterrupt):
            run_cell(job)
    assert (job.work / "probe" / "head.safetensors").stat().st_mtime_ns == written
    (job.work / "probe" / "trainer_state.json").unlink()  # counted in phase 2's checkpoint since
    result = run_cell(job)
    assert result.passes == dict.fromkeys(("training", "attack", "forward"), 2 * TRAINED)
    assert result.report.metadata["probe"]["epochs"] == 2 and result.report.metadata["training"]["probe_epochs"] == 2


def test_a_failed_cell_stops_no_other_and_is_tried_again(grid_argv, kept, tmp_path, monkeypatch, capsys):
    measure = cell_runs._measure

    def failing(job, *more):
        if job.cell.setting == "standard":
            raise RuntimeError("CUDA out of\nmemory")
        return measure(job, *more)

    monkeypatch.setattr(cell_runs, "_measure", failing)
    with pytest.raises(SystemExit) as stop:
        main(grid_argv)
    assert "cells without a result: 1." in str(stop.value.code) and "RuntimeError: CUDA out of memory" in str(
        stop.value.code
    )
    folder = tmp_path / "grid"
    assert (folder / f"failed/{STANDARD}.txt").read_text().startswith("RuntimeError: CUDA out of memory\n")
    assert kept(FIX) and "RuntimeError: CUDA out of memory" in (folder / "tables.md").read_text()

    monkeypatch.setattr(cell_runs, "_measure", measure)
    main(grid_argv)
    assert kept(STANDARD) and not (folder / f"failed/{STANDARD}.txt").exists()


def test_two_processes_never_run_one_cell(make_options, flags, capsys):
    first, _ = make_options().grid(flags).jobs()
    first.work.parent.mkdir(parents=True)
    with FileLock(first.work.with_name(f"{first.cell.name}.lock")):
        assert is_in_progress(first)
        with pytest.raises(CellInProgress, match="Another process is at the cell"):
            run_cell(first)
    assert not is_in_progress(first)


def test_a_cell_that_another_process_finished_is_not_run_again(make_options, flags, trained):
    job = make_options(settings=["fix"]).grid(flags).jobs()[0]
    result = run_cell(job)
    assert run_cell(job) == result and len(trained) == 1


@pytest.mark.parametrize("content", [b"{}", b"[1]", b"\xff\xfe", b'{"report": {}, "seed": "x"}', b""])
def test_a_damaged_result_is_named(content, make_options, flags, grid_argv, capsys):
    job = make_options().grid(flags).jobs()[0]
    job.result.parent.mkdir(parents=True)
    job.result.write_bytes(content)
    with pytest.raises(SystemExit):
        main(grid_argv)
    assert f"{job.result} is no result of a grid's cell" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_a_damaged_note_of_a_begun_cell_is_named(content, make_options, flags, grid_argv, capsys):
    job = make_options().grid(flags).jobs()[0]
    job.work.mkdir(parents=True)
    (job.work / "configuration.json").write_text(content)
    with pytest.raises(SystemExit):
        main(grid_argv)
    error = capsys.readouterr().err
    assert "configuration.json is damaged" in error and f"Delete the folder {job.work}" in error


def test_cells_that_are_left_out_must_fit_the_tables_as_well(grid_argv, trained, capsys):
    main([*grid_argv, "--only", "*standard*"])
    with pytest.raises(SystemExit):
        main([*grid_argv, "--only", "*fix*", "--learning_rate", "1e-4"])
    assert f"the cell {STANDARD} of another configuration" in capsys.readouterr().err
    assert trained == [STANDARD]


def test_a_cell_at_which_another_process_is_has_not_failed(grid_argv, make_options, flags, tmp_path):
    first, _ = make_options().grid(flags).jobs()
    first.work.parent.mkdir(parents=True)
    with FileLock(first.work.with_name(f"{first.cell.name}.lock")), pytest.raises(SystemExit) as stop:
        main(grid_argv)
    assert f"{first.cell.name}: another process is at it" in str(stop.value.code)
    assert "Failed" not in (tmp_path / "grid" / "tables.md").read_text()


@pytest.mark.parametrize("option", ["eval_attack_steps:3", "attack_loss:dlr", "max_eval_samples:4", "split_seed:1"])
def test_settings_that_change_what_is_measured_are_refused_before_compute(option, grid_argv, trained, capsys):
    with pytest.raises(SystemExit):
        main([*grid_argv, "--settings", "fix", f"mine={option}"])
    error = capsys.readouterr().err
    assert "would not be measured alike" in error and option.partition(":")[0] in error and not trained


def test_a_grid_is_one_process(grid_argv, monkeypatch, trained, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        main(grid_argv)
    assert "reproduce itself is one process, and a launcher started 2" in capsys.readouterr().err and not trained


@pytest.mark.parametrize("setting", ["hinge", "per_sample"])
def test_killed_in_the_middle_it_goes_on_bitwise(setting, grid_argv, make_options, flags, kept, tmp_path, trained):
    name = f"tinyvit.colours.Linf.16_255.{setting}.seed0"
    argv = [*grid_argv, "--settings", "standard", setting, "--num_train_epochs", "6"]
    script = f"from hf_robust_ft.cli.main import main; main({argv!r})"
    work = tmp_path / "grid" / "unfinished" / name
    killed_once_saved(script, work, tmp_path / "log")
    main(argv)
    assert trained == [name]  # the finished one was not run again
    resumed, spent = kept(name), json.loads((tmp_path / "grid" / "cells" / f"{name}.json").read_text())["seconds"]
    assert spent["training"] >= 0
    (tmp_path / "grid").rename(tmp_path / "killed")
    main(argv)
    assert kept(name) == resumed


def test_a_cell_with_masks_is_measured_by_mean_iou_and_pixel_accuracy(flags, tmp_path, capsys):
    write_scenes(tmp_path / "scenes", 12)
    segformer(3).save_pretrained(tmp_path / "segformer")
    SegformerImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(tmp_path / "segformer")
    argv = ["reproduce", "--models", str(tmp_path / "segformer"), "--datasets", str(tmp_path / "scenes")]
    argv += ["--settings", "fix", "--output_dir", str(tmp_path / "grid"), "--trust_checks", "false", *flags]
    argv += ["--epsilons", "16/255", "--eval_points", "2", "--eval_attack_steps", "auto", "--eval_attack_steps_limit"]
    argv += ["20", "--batch_norm", "trainer", "--augmentation", "none"]
    main(argv)
    (file,) = (tmp_path / "grid" / "cells").iterdir()
    cell = MeasuredCell.from_json(file)
    assert isinstance(cell.report, SegmentationReport) and cell.passes["attack"] == cell.passes["training"] > 0
    assert cell.report.convergence["rounds"][0]["steps"] == 10 == cell.first_steps
    assert len(cell.validation["mean_ious"]) == len(cell.validation["pixel_accuracies"]) == 2
    assert cell.scores.adversarial == cell.report.adversarial_mean_iou <= cell.first_scores.adversarial
    table = (tmp_path / "grid" / "tables.md").read_text()
    assert "fix, mean IoU" in table and "fix, pixel accuracy" in table and "mean IoU clean" in capsys.readouterr().out
    for protocol, told in (("exact", "exact"), ("reliable", "eval_attack_steps_limit=20 does nothing under protocol")):
        with pytest.raises(SystemExit):
            main([*argv, "--protocol", protocol, "--output_dir", str(tmp_path / "other")])
        assert told in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
