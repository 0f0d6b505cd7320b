"""`hf-robust-ft verify`: from a report, a folder or a repository to a line a check and an exit status."""

import dataclasses
import json
import shutil

import pytest
from passed_checks import passed_checks

from hf_robust_ft import RobustnessReport
from hf_robust_ft.cli.main import main
from hf_robust_ft.evaluation.reliability import reliability_sentence


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A checkpoint, an image folder and an evaluation of it with its examples."""
    import conftest

    call = lambda fixture, *args: fixture._get_wrapped_function()(*args)  # noqa: E731
    folder = tmp_path_factory.mktemp("evaluated")
    images, processor = call(conftest.images), call(conftest.processor)
    data = call(conftest.imagefolder, images, folder)
    model = call(conftest.make_model)("resnet")
    names = dict(enumerate(images.features["label"].names))
    model.config.id2label, model.config.label2id = names, {name: label for label, name in names.items()}
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    main([
        "evaluate", "--model", str(folder / "model"), "--dataset", data, "--split", "train", "--max_eval_samples", "24",
        "--validation_size", "0.1", "--eps", "8/255", "--attack_steps", "3", "--trust_checks", "false", "--device",
        "cpu", "--output_dir", str(folder / "evaluation"), "--store_examples",
    ])  # fmt: skip
    return folder


@pytest.fixture
def run(evaluated, tmp_path, monkeypatch, capsys):
    """Verify a copy; the exit status, what was printed and the errors."""
    monkeypatch.chdir(evaluated)  # a report names a local folder without the folders above it
    shutil.copytree(evaluated / "evaluation", tmp_path / "evaluation")
    capsys.readouterr()

    def call(*words):
        try:
            main(["verify", *map(str, words), "--device", "cpu"])
            code = 0
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_an_evaluation_verifies_from_its_folder_or_report(run, evaluated, tmp_path):
    report = RobustnessReport.from_json(tmp_path / "evaluation" / "robustness_report.json")
    assert report.num_samples == 24 and report.found_again["examples"] > 0 and report.metadata["source_digest"]
    for target in ("evaluation", "evaluation/robustness_report.json"):
        code, out, _ = run(tmp_path / target, "--model", "model")
        assert code == 0 and "Verified" in out and "FAILED" not in out
        lines = [line.split()[1] for line in out.splitlines() if line.startswith("ok")]
        assert lines == ["weights", "image", "files", "complete", "images", "labels", "range", "ball",
                         "misclassified", "undecided", "clean", "scores"]  # fmt: skip


def test_a_checkpoint_with_report_and_examples_needs_no_options(run, evaluated, tmp_path):
    shutil.copytree(evaluated / "model", tmp_path / "evaluation", dirs_exist_ok=True)
    code, out, _ = run(tmp_path / "evaluation")
    assert code == 0 and "ok     weights" in out


def test_the_verdict_stands_beside_the_accuracy(run, tmp_path):
    path = tmp_path / "evaluation" / "robustness_report.json"
    code, out, _ = run(tmp_path / "evaluation", "--model", "model")
    assert code == 0 and "% (doubtful) and the others follow" in out
    assert out.splitlines()[-2] == reliability_sentence(RobustnessReport.from_json(path))
    assert "Reliability: doubtful. Robust figures may be too high: no trust checks were run (not_checked)" in out
    content = json.loads(path.read_text())
    content["checks"] = [dataclasses.asdict(check) for check in passed_checks()]
    path.write_text(json.dumps(content))
    code, out, _ = run(tmp_path / "evaluation", "--model", "model")
    assert code == 0 and "\nReliability: ok. All 8 trust checks passed" in out and "(doubtful)" not in out


def test_a_changed_number_ends_in_status_1_and_its_line(run, tmp_path):
    path = tmp_path / "evaluation" / "robustness_report.json"
    content = json.loads(path.read_text())
    content["adversarial_accuracy"] += 1 / 24
    path.write_text(json.dumps(content))
    code, out, _ = run(tmp_path / "evaluation", "--model", "model")
    assert str(code).endswith("does not hold: scores.") and "Verified" not in out
    (line,) = [line for line in out.splitlines() if line.startswith("FAILED")]
    assert "scores" in line and "adversarial accuracy" in line


def test_other_weights_and_other_images_are_named(run, evaluated, tmp_path):
    shutil.copytree(evaluated / "model", tmp_path / "other")
    weights = tmp_path / "other" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 64
    weights.write_bytes(content)
    code, out, _ = run(tmp_path / "evaluation", "--model", tmp_path / "other")
    assert "weights" in str(code) and "model.safetensors in" in out
    code, out, _ = run(tmp_path / "evaluation", "--model", "model", "--split_seed", "3")
    assert "image files" in str(code) and "images" in str(code)


def test_what_is_missing_is_told_with_the_way_to_it(run, evaluated, tmp_path):
    code, _, err = run(tmp_path / "evaluation")
    assert code == 2 and "give --model FOLDER" in err
    shutil.rmtree(tmp_path / "evaluation" / "adversarial_examples")
    code, _, err = run(tmp_path / "evaluation", "--model", "model")
    assert code == 2 and "has no stored examples: evaluate with hf-robust-ft evaluate --model model" in err
    assert "--store_examples" in err and "--split train" in err and "--max_eval_samples 24" in err
    assert "--protocol reliable" in err and "--attack_steps" not in err
    assert "(by protocol reliable, not paper), and verify what that writes" in err
    for given in ("evaluation", "evaluation/adversarial_examples"):
        assert run(tmp_path / "evaluation", "--model", "model", "--examples", evaluated / given)[0] == 0
    code, _, err = run(tmp_path / "evaluation", "--model", "model", "--examples", tmp_path)
    assert code == 2 and "has no stored examples (examples.json)" in err
    code, _, err = run(tmp_path)
    assert code == 2 and "There is no robustness_report.json in" in err
    code, _, err = run(tmp_path / "nowhere")
    assert code == 2 and "There is no file or folder" in err
    code, _, err = run(tmp_path / "evaluation", "--revision", "main")
    assert code == 2 and "leave --revision out" in err


def test_storing_needs_a_folder(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--model", "x/y", "--dataset", "digits", "--store_examples"])
    assert "store_examples needs an output_dir" in capsys.readouterr().err
