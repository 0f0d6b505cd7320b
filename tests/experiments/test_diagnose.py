"""Sweeps, diagnoses and calibrations on a few digits: of a tiny network and of the embedded EfficientNet-Lite0."""

import json
import os

import numpy as np
import pytest
from killed import killed_once_saved
from PIL import Image

import hf_robust_ft.experiments.diagnose as diagnosing
import hf_robust_ft.experiments.sweep as sweeping
from hf_robust_ft.cli.main import main
from hf_robust_ft.experiments.sweep import StopOnceAdapted, SweepRun, train_sweep
from hf_robust_ft.provenance.validation_curves import ValidationCurve, read_run
from hf_robust_ft.reporting.diagnosis_plots import NAMES
from hf_robust_ft.runs.fine_tune import DataArguments, ModelArguments
from hf_robust_ft.runs.recipes import parse_recipe
from hf_robust_ft.training.arguments import AdversarialTrainingArguments

FLAGS = [
    "--config", "quickstart", "--learning_rate", "5e-4", "--max_train_samples", "64", "--num_train_epochs", "2",
    "--attack_steps", "1", "--seed", "0", "--use_cpu",
    "--disable_tqdm", "true", "--per_device_train_batch_size", "16", "--threshold", "0.11",
]  # fmt: skip


@pytest.fixture
def flags(make_model, processor, tmp_path):
    """Of a network that learns in milliseconds; `FLAGS` alone are of the embedded EfficientNet-Lite0."""
    model = str(tmp_path / "tiny")
    make_model("resnet", num_labels=10).save_pretrained(model)
    processor.save_pretrained(model)
    quick = ["--model", model, "--image_size", "none", "--learning_rate", "1e-2", "--batch_norm", "trainer"]
    return [*FLAGS, *quick, "--output_dir", str(tmp_path / "sweep")]


@pytest.fixture
def trained(monkeypatch):
    """The names of the runs that were trained, in turn."""
    names, train = [], sweeping._train

    def noting(model_args, data_args, args, run, *more):
        names.append(run.name)
        return train(model_args, data_args, args, run, *more)

    monkeypatch.setattr(sweeping, "_train", noting)
    return names


@pytest.fixture
def arguments(tmp_path):
    """A sweep's arguments; a new object each time, as from a new command."""

    def make(**changes):
        types = (ModelArguments, DataArguments, AdversarialTrainingArguments)
        settings = {
            "max_train_samples": 64, "num_train_epochs": 2, "attack_steps": 1, "use_cpu": True, "disable_tqdm": True,
            "per_device_train_batch_size": 16, "learning_rate": 5e-4, "output_dir": str(tmp_path / "sweep"), **changes,
        }  # fmt: skip
        return parse_recipe(types, "quickstart", settings)

    return make


@pytest.fixture
def kept_runs(tmp_path):
    """Six finished runs whose delays grow with eps."""
    for k, delay in enumerate((1, 2, 3, 5, 6, None)):
        accuracies = [0.0 if delay is None or epoch < delay else 0.9 - 0.1 * k for epoch in range(1, 11)]
        curve = ValidationCurve(f"run{k}", k / 255, tuple(range(1, 11)), tuple(accuracies), 10, {"dataset": "cars"})
        curve.to_json(tmp_path / f"run{k}.json")
    return [str(tmp_path / f"run{k}.json") for k in range(6)]


def refused(argv, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_a_sweep_is_trained_once_extended_and_guarded(flags, trained, tmp_path, capsys, rendered_pictures):
    folder = tmp_path / "sweep"
    main(["diagnose", *flags, "--epsilons", "0", "8/255", "32/255"])
    assert trained == ["standard-seed0", "fix-8_255-seed0", "fix-32_255-seed0"]
    diagnosis = json.loads((folder / "diagnosis.json").read_text())
    assert [run["eps"] for run in diagnosis["runs"]] == [0, 8 / 255, 32 / 255]
    curves = {run["name"]: read_run(folder / "curves" / f"{run['name']}.json") for run in diagnosis["runs"]}
    for run in diagnosis["runs"]:
        curve = curves[run["name"]]
        assert curve.epochs == (1, 2) and curve.facts["dataset"] == "digits"
        assert (run["delay"], run["final_accuracy"]) == (curve.delay(0.11), curve.accuracies[-1])
        assert run["severity"] == curves["standard-seed0"].accuracies[-1] - curve.accuracies[-1]
    assert len({curve.accuracies for curve in curves.values()}) == 3  # eps reached the training
    for name in NAMES:
        assert Image.open(folder / name).size[0] > 500
    assert not (folder / "unfinished").exists()
    printed = capsys.readouterr().out
    assert "eps_schedule=hinge" not in printed  # what the recipe says of it is not used
    assert "fix-32_255-seed0" in printed and (folder / "diagnosis.txt").read_text().strip() in printed

    main(["diagnose", *flags, "--epsilons", "0", "8/255", "16/255", "32/255"])
    assert trained[3:] == ["fix-16_255-seed0"]
    assert len(json.loads((folder / "diagnosis.json").read_text())["runs"]) == 4

    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    error = refused(["diagnose", *flags, "--learning_rate", "1e-4", "--epsilons", "0", "1/255", "2/255"], capsys)
    assert "another configuration: learning_rate 0.01 there, 0.0001 now." in error
    assert before == {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} and len(trained) == 4


def test_a_sweeps_run_is_what_train_gives(arguments, tmp_path):
    (curve,) = train_sweep(*arguments(), [SweepRun("8/255", 0)], 0.2)
    model_args, data_args, args = arguments(
        output_dir=str(tmp_path / "single"), eps="8/255", eps_schedule="constant", robust_eval="no", seed=0,
        eval_epsilons=None,
    )  # fmt: skip
    trainer = sweeping.build_trainer(model_args, args, sweeping.prepare_run(model_args, data_args, args))
    trainer.train()
    trainer.save_state()
    assert curve.accuracies == read_run(tmp_path / "single").accuracies


def test_killed_in_the_middle_it_goes_on_bitwise(arguments, tmp_path, monkeypatch, capsys):
    runs = [SweepRun("0", 0), SweepRun("8/255", 0)]
    script = f"""
import sys
from hf_robust_ft.cli.main import main
main(["diagnose", *{FLAGS!r}, "--num_train_epochs", "3", "--epsilons", "0", "8/255", "9/255",
      "--output_dir", {str(tmp_path / "sweep")!r}])
"""
    folder = tmp_path / "sweep" / "unfinished" / runs[1].name
    checkpoint = killed_once_saved(script, folder, tmp_path / "log", pause=0.02)
    assert int(checkpoint.split("-")[-1]) < 12, (tmp_path / "log").read_text()
    assert not (tmp_path / "sweep" / "curves" / f"{runs[1].name}.json").exists()
    standard = (tmp_path / "sweep" / "curves" / f"{runs[0].name}.json").read_bytes()
    (folder / "checkpoint-99").mkdir()  # torn: its state was cut off
    (folder / "checkpoint-99" / "trainer_state.json").write_text('{"epoch": ')

    capsys.readouterr()
    resumed = train_sweep(*arguments(num_train_epochs=3), runs, 0.2)
    printed = capsys.readouterr().out
    assert f"{runs[0].name}: done before" in printed
    assert f"{runs[1].name}: goes on from {os.path.basename(checkpoint)}" in printed
    assert (tmp_path / "sweep" / "curves" / f"{runs[0].name}.json").read_bytes() == standard
    fresh = train_sweep(*arguments(num_train_epochs=3, output_dir=str(tmp_path / "fresh")), runs, 0.2)
    assert resumed == fresh


def test_calibrate_stops_fix_runs_and_writes_a_recipe(flags, tmp_path, trained, capsys):
    recipe = tmp_path / "found.yaml"
    sweep = ["--epsilons", "0", "1/255", "--num_train_epochs", "10", "--max_train_samples", "200"]
    main(["calibrate", *flags, *sweep, "--recipe", str(recipe)])
    curves = [read_run(tmp_path / "sweep" / "curves" / f"{name}.json") for name in trained]
    assert [curve.is_complete for curve in curves] == [True, False]
    delay = curves[1].delay(0.11)
    assert curves[1].epochs[-1] == delay < 10
    start, mean_delay = curves[0].epoch_of_share(), (curves[0].delay(0.11) + delay) / 2
    end = max(np.floor(mean_delay + 0.5), start + 1)  # a ramp of at least an epoch
    (args,) = parse_recipe((AdversarialTrainingArguments,), recipe, {"output_dir": str(tmp_path)})
    assert args.eps_schedule == "hinge" and args.schedule_start == start / 10
    assert args.schedule_end == end / 10
    assert f"--config {recipe}" in capsys.readouterr().out
    assert "found.yaml exists. Name another file" in refused(["calibrate", *flags, "--recipe", str(recipe)], capsys)
    # Runs that were stopped early are none of a diagnosis.
    error = refused(["diagnose", *flags, *sweep, "--seeds", "0", "1"], capsys)
    assert "stop_above 0.11 there, None now" in error
    main(["calibrate", "--runs", *(str(f) for f in sorted((tmp_path / "sweep" / "curves").iterdir())),
          "--threshold", "0.11", "--recipe", str(tmp_path / "again.yaml")])  # fmt: skip
    assert (tmp_path / "again.yaml").read_text() == recipe.read_text()


def test_finished_runs_are_diagnosed_without_training(kept_runs, trained, tmp_path, capsys, rendered_pictures):
    main(["diagnose", "--runs", *kept_runs, "--output_dir", str(tmp_path / "found")])
    found = json.loads((tmp_path / "found" / "diagnosis.json").read_text())
    assert [run["delay"] for run in found["runs"]] == [1, 2, 3, 5, 6, None] and not trained
    assert found["correlation"]["value"] == pytest.approx(np.corrcoef(
        [1, 2, 3, 5, 6, 10], [0, 0.1, 0.2, 0.3, 0.4, 0.9])[0, 1])  # fmt: skip
    printed = capsys.readouterr().out
    assert "never" in printed and "Use a schedule: at eps 5/255 fix ends 90.0 points below" in printed
    assert "T1 = 1 and T2 = 5 of 10 epochs (--schedule_start 0.1 --schedule_end 0.5)" in printed
    recipe = tmp_path / "found.yaml"
    main(["calibrate", "--runs", *kept_runs, "--recipe", str(recipe)])
    (args,) = parse_recipe((AdversarialTrainingArguments,), recipe, {"output_dir": str(tmp_path)})
    assert (args.schedule_start, args.schedule_end) == (0.1, 0.5)  # (1 + 2 + 3 + 5 + 6 + 10) / 6 = 4.5


@pytest.mark.parametrize("command", ["diagnose", "calibrate"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--epsilons", "0", "0.0"], "epsilons need at least one budget above 0"),
        (["--epsilons", "0", "4", "8"], "Did you mean eps='4/255'"),
        (["--epsilons", "0", "4/255", "8/510"], "fix-4_255-seed0 would be trained twice"),
        (["--threshold", "5"], "the paper's 5 % is 0.05"),
        (["--eps", "4/255"], "--eps: {command} trains every run at a constant eps"),
        (["--schedule-start=0.1"], "Leave it out"),
        (["--max_eval_samples", "5"], "--max_eval_samples: {command} never measures the test split"),
        (["--robust_eval", "no", "--eps=1"], "and attacks nothing there; --eps: {command} trains every run at a"),
        (["--attack_guard", "0.5"], "--attack_guard: {command} trains every run at a constant eps"),
        (["--load_best_model_at_end"], "--load_best_model_at_end: {command} saves after each epoch"),
        (["--push_to_hub"], "keeps the runs' curves, not their models"),
        (["--probe_epochs", "2", "--probe_learning_rate", "1"], "trains all of the model from the first step"),
        (["--resume_from_checkpoint", "last"], "goes on by itself where it was interrupted"),
        (["--norm", "L2"], "give --epsilons for L2"),
        (["--max_steps", "5"], "counted in epochs"),
    ],
)
def test_bad_sweeps_are_refused_before_training(flags, trained, tmp_path, capsys, command, changes, message):
    assert message.format(command=command) in refused([command, *flags, *changes], capsys)
    assert not trained and not (tmp_path / "sweep").exists()


def test_standard_fine_tuning_is_added_and_two_runs_tell_delay_and_drop(flags, trained, tmp_path, capsys):
    main(["diagnose", *flags, "--epsilons", "8/255"])
    assert trained == ["standard-seed0", "fix-8_255-seed0"]
    found = json.loads((tmp_path / "sweep" / "diagnosis.json").read_text())
    assert [run["eps"] for run in found["runs"]] == [0, 8 / 255] and found["correlation"] is None
    assert found["runs"][1]["severity"] == found["runs"][0]["final_accuracy"] - found["runs"][1]["final_accuracy"]
    assert all((tmp_path / "sweep" / name).is_file() for name in NAMES)
    assert "A correlation of delay and drop needs 3 runs" in capsys.readouterr().out


def test_bad_runs_are_refused(kept_runs, tmp_path, capsys):
    assert "There is no fix run" in refused(["diagnose", "--runs", kept_runs[0]], capsys)
    assert "Given twice: run0.json" in refused(["diagnose", "--runs", *kept_runs, kept_runs[0]], capsys)
    ValidationCurve("dogs", 1 / 255, tuple(range(1, 11)), (0.5,) * 10, 10, {"dataset": "dogs"}).to_json(
        tmp_path / "dogs.json"
    )
    error = refused(["diagnose", "--runs", *kept_runs, str(tmp_path / "dogs.json")], capsys)
    assert "different dataset" in error and "run0 has cars, dogs dogs" in error
    assert "Unknown option --epsilons" in refused(["diagnose", "--runs", *kept_runs, "--epsilons", "0"], capsys)


def test_a_threshold_that_guessing_exceeds_is_warned_of_before_training(arguments, monkeypatch):
    def build_trainer(*args, **kwargs):
        raise FloatingPointError("the training would start here")

    monkeypatch.setattr(sweeping, "build_trainer", build_trainer)
    with pytest.raises(FloatingPointError), pytest.warns(UserWarning, match="guessing among 10 classes"):
        train_sweep(*arguments(), [SweepRun("0", 0)], 0.05)


def test_a_threshold_that_guessing_exceeds_is_told(tmp_path, capsys):
    files = []
    for k in range(3):
        facts = {"classes": [str(digit) for digit in range(10)]}
        curve = ValidationCurve(
            f"run{k}", k / 255, (1, 2, 3, 4, 5, 6), (0.1, 0.2, 0.3 - 0.05 * k, 0.9, 0.9, 0.9), 6, facts
        )
        files.append(str(tmp_path / f"run{k}.json"))
        curve.to_json(files[-1])
    main(["diagnose", "--runs", *files, "--output_dir", str(tmp_path / "low")])
    assert "guessing among 10 classes is right in 10.0% of cases" in capsys.readouterr().out
    main(["calibrate", "--runs", *files, "--recipe", str(tmp_path / "low.yaml")])
    assert "# Beware: guessing among 10 classes" in (tmp_path / "low.yaml").read_text()
    main(["diagnose", "--runs", *files, "--threshold", "0.25", "--output_dir", str(tmp_path / "high")])
    assert "guessing among" not in capsys.readouterr().out


def test_a_picture_that_fails_does_not_lose_the_diagnosis(tmp_path, monkeypatch, caplog):
    def fail(*_):
        assert (tmp_path / "diagnosis.json").is_file()
        raise KeyError(3)

    monkeypatch.setattr(diagnosing, "plot_diagnosis", fail)
    curves = [
        ValidationCurve(f"eps {eps}", eps, (1.0, 2.0, 3.0), (first, 0.8, 0.9), 3.0)
        for eps, first in ((0.0, 0.5), (0.01, 0.3), (0.02, 0.2))
    ]
    diagnosing.write_diagnosis(curves, 0.05, tmp_path)
    assert (tmp_path / "diagnosis.txt").is_file()
    assert "A picture of the diagnosis could not be drawn and is left out (KeyError: 3)." in caplog.text


@pytest.mark.parametrize("command", ["diagnose", "calibrate"])
@pytest.mark.parametrize("more", [[], ["--runs", "folder"]], ids=["sweep", "runs"])
def test_help_tells_the_options(command, more, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, *more, "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0 and "option_strings" not in printed  # what a bare % in a help text turns into
    assert "--threshold THRESHOLD Validation accuracy above which a run has adapted" in printed
    assert "--eps_schedule" not in printed and "--push_to_hub" not in printed  # what they refuse
    assert ("--epsilons" in printed) == (not more) and ("--recipe" in printed) == (command == "calibrate")
    assert "--runs" in printed


def test_stopping_asks_for_more_than_the_threshold():
    class Control:
        should_training_stop = False

    control = Control()
    StopOnceAdapted(0.5).on_evaluate(None, None, control, {"eval_clean_accuracy": 0.5})
    assert not control.should_training_stop
    StopOnceAdapted(0.5).on_evaluate(None, None, control, {"eval_clean_accuracy": 0.51})
    assert control.should_training_stop


def test_a_folder_of_an_older_version_goes_on_where_nothing_it_depends_on_has_changed(tmp_path):
    now = {"model": "r50", "learning_rate": 1e-3, "batch_norm": "frozen", "max_grad_norm": 0.5}
    older = {name: now[name] for name in ("model", "learning_rate", "batch_norm")} | {"trust_remote_code": False}
    (tmp_path / sweeping.CONFIGURATION).write_text(json.dumps(older))
    sweeping._keep_configuration(tmp_path, now | {"max_grad_norm": 1.0}, True)
    with pytest.raises(ValueError, match=r"another configuration: max_grad_norm 1\.0 there, 0\.5 now\. Give"):
        sweeping._keep_configuration(tmp_path, now, True)
    del older["batch_norm"]  # before it was asked, BatchNorm took the batch's statistics
    (tmp_path / sweeping.CONFIGURATION).write_text(json.dumps(older))
    with pytest.raises(ValueError, match="batch_norm 'trainer' there, 'frozen' now"):
        sweeping._keep_configuration(tmp_path, now, True)
