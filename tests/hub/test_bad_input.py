"""What `publish` refuses before anything is uploaded, each with its message; no Hub is needed for it."""

import dataclasses
import json
import shlex
import shutil

import pytest
import torch
from finished_run import report, write_checkpoint, write_run
from safetensors.torch import load_file, save_file

from hf_robust_ft import RobustnessReport
from hf_robust_ft.cli.main import main
from hf_robust_ft.hub import PublishError, publish, publish_metric
from hf_robust_ft.hub.contents import published_files
from hf_robust_ft.provenance.weight_hashes import hash_weight_files
from hf_robust_ft.runs.arguments import DataArguments
from hf_robust_ft.runs.evaluation_arguments import EvaluationArguments
from hf_robust_ft.runs.options import parse_options


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def rewrite(folder, **facts):
    """The folder's report with other metadata."""
    path = folder / "robustness_report.json"
    RobustnessReport.from_json(path).with_metadata(**facts).to_json(path)


def commands(message: str) -> list[list[str]]:
    """The commands that a message offers."""
    return [shlex.split(command) for command in message.split("publish both: ")[1].split(" && ")]


def test_offline_mode_is_told_once_all_else_is_in_order(run):
    with pytest.raises(PublishError, match=r"offline mode \(HF_HUB_OFFLINE is set\). Unset it to publish"):
        publish(run, "tester/robust")
    with pytest.raises(PublishError, match="offline mode"):
        publish_metric("tester/robustness")


@pytest.mark.parametrize("name", ["a/b/c", "tester/-", "tester/two words", "te..ster/x", "tester/x.git", ""])
def test_an_impossible_name_is_refused(run, name):
    with pytest.raises(ValueError, match=r"is no repository id: .*Give OWNER/NAME, such as"):
        publish(run, name)


@pytest.mark.parametrize("revision", ["", " "])
def test_a_branch_without_a_name(run, revision):
    with pytest.raises(ValueError, match="names no branch: give one, or leave it out"):
        publish(run, "tester/robust", revision=revision)


@pytest.mark.parametrize("licence", ["Apache 2.0", "", "dinov3-license"])
def test_a_licence_that_the_hub_does_not_list(run, licence):
    with pytest.raises(ValueError, match=f"license='{licence}' is no licence id that the Hub lists"):
        publish(run, "tester/robust", license=licence)


@pytest.mark.parametrize("name", ["examples/example_099.png", "training.png"])
def test_evidence_that_is_a_link_to_elsewhere_is_not_followed(run, tmp_path, name):
    (tmp_path / "private.png").write_bytes(b"not for others")
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(tmp_path / "private.png")
    with pytest.raises(ValueError, match="is a link to a file outside"):
        publish(run, "tester/robust")


def test_a_branch_or_a_pull_request(run):
    with pytest.raises(ValueError, match="not both"):
        publish(run, "tester/robust", revision="next", create_pr=True)


def test_without_a_report_the_command_that_makes_one_is_offered(run):
    (run / "robustness_report.json").unlink()
    with pytest.raises(ValueError, match=r"no robustness_report.json in .*run, so nothing is known") as refused:
        publish(run, "tester/robust")
    evaluate, again = commands(str(refused.value))
    assert evaluate == ["hf-robust-ft", "evaluate", "--model", str(run), "--dataset", "someone/colours",
                        "--norm", "Linf", "--eps", "8/255", "--output_dir", f"{run}-evaluation"]  # fmt: skip
    assert again == ["hf-robust-ft", "publish", str(run), "tester/robust", "--report", f"{run}-evaluation"]
    parse_options("evaluate", evaluate[2:], (EvaluationArguments, DataArguments), ("e", "d"), "")


def test_a_report_of_other_weights_is_refused(run, tmp_path):
    write_checkpoint(tmp_path / "other", seed=1)
    shutil.copy(tmp_path / "other" / "model.safetensors", run)
    with pytest.raises(ValueError, match=r"belongs to other weights: of model.safetensors it names sha256") as refused:
        publish(run, "tester/robust")
    evaluate, _ = commands(str(refused.value))
    assert evaluate[2:] == [
        "--model", str(run), "--dataset", "someone/colours", "--dataset_revision", "3" * 40, "--norm", "Linf", "--eps",
        "8/255", "--attack_steps", "10", "--output_dir", f"{run}-evaluation", "--epsilons", "0", "4/255", "8/255",
    ]  # fmt: skip
    parse_options("evaluate", evaluate[2:], (EvaluationArguments, DataArguments), ("e", "d"), "")


def test_a_report_that_does_not_name_its_weights_is_refused(run):
    rewrite(run, weights_sha256=None)
    with pytest.raises(ValueError, match="does not say which weights it was measured on"):
        publish(run, "tester/robust")


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is no JSON file"), ("{}", "is no robustness report"), (None, "measured no attack")],
)
def test_a_report_that_is_none_is_refused(run, content, message):
    if content is None:
        measured = dataclasses.replace(report({"weights_sha256": hash_weight_files(run)}), epsilons=[0.0])
        content = json.dumps(dataclasses.asdict(measured))
    (run / "robustness_report.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        publish(run, "tester/robust")


@pytest.mark.parametrize("name", ["clean_accuracy", "adversarial_accuracy", "expected_robustness"])
@pytest.mark.parametrize("value", [0.99, float("nan")])
def test_scores_that_the_curve_does_not_give_are_refused(run, name, value):
    path = run / "robustness_report.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    card = (run / "README.md").read_bytes()
    with pytest.raises(
        ValueError, match=rf"changed by hand. Its {name.replace('_', ' ')} is .* Measure it and publish"
    ):
        publish(run, "tester/robust")
    assert (run / "README.md").read_bytes() == card


def test_another_evaluation_takes_the_reports_place_and_keeps_what_training_was(run, tmp_path):
    evaluation = tmp_path / "evaluation"
    (evaluation / "examples").mkdir(parents=True)
    facts = {"weights_sha256": hash_weight_files(run), "dataset": "someone/colours", "base_model_text": "run"}
    facts["transforms"] = {"eval": ["resize"], "text": "Evaluation images: resize."}
    rewrite(run, transforms=facts["transforms"] | {"text": "Evaluation images: resize. Training images: flip."})
    smallest = [0.0] * 20 + [4 / 255] * 80 + [None] * 100
    measured = dataclasses.replace(report(facts), protocol="exact", smallest_epsilons=smallest)
    measured.to_json(evaluation / "robustness_report.json")
    (evaluation / "examples" / "example_001.png").write_bytes(b"strip")
    (evaluation / "examples" / "examples.npz").write_bytes(b"numbers")
    before = (run / "robustness_report.json").read_bytes()
    with pytest.raises(PublishError, match="offline"):
        publish(run, "tester/robust", report=evaluation)
    taken = RobustnessReport.from_json(run / "robustness_report.json")
    assert taken.protocol == "exact" and taken.metadata["base_model"] == "timm/base"
    assert taken.metadata["training"] == {"eps": "8/255"} and taken.metadata.base_model_text is None
    assert taken.metadata.transforms["text"].endswith("Training images: flip.")
    assert (run / "robustness_report.replaced.json").read_bytes() == before
    strips = {name for name in published_files(run) if name.startswith("examples/")}
    assert strips == {"examples/example_001.png"} and (run / "examples" / "replaced_000.png").is_file()
    numbers = [(run / "examples" / name).read_bytes() for name in ("examples.npz", "replaced_examples.npz")]
    assert numbers == [b"numbers", b"of training"]  # for the page of runs; not published
    assert "robustness_report.replaced.json" not in published_files(run)


def no_weights(run):
    (run / "model.safetensors").unlink()


def pickled(run):
    torch.save({}, run / "pytorch_model.bin")
    no_weights(run)


def lacking(run):
    weights = load_file(run / "model.safetensors")
    weights.pop("classifier.1.bias")
    save_file(weights, run / "model.safetensors", metadata={"format": "pt"})
    rewrite(run, weights_sha256=hash_weight_files(run))


def not_finite(run):
    weights = load_file(run / "model.safetensors")
    weights["classifier.1.bias"][0] = float("nan")
    save_file(weights, run / "model.safetensors", metadata={"format": "pt"})
    rewrite(run, weights_sha256=hash_weight_files(run))


def another_architecture(run):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"model_type": "nothing_known"}))


def sharded(run):
    index = {"weight_map": {"classifier.1.bias": "model-00001-of-00001.safetensors"}}
    (run / "model.safetensors.index.json").write_text(json.dumps(index))
    no_weights(run)


def own_code(run):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "code.Config"}}))


def a_token(run):
    rewrite(run, notes=["hf_" + "a1B2" * 9])


def a_path(run):
    rewrite(run, notes=[f"trained in {run}/here"])


def broken_card(run):
    (run / "README.md").write_text("---\na: [\n---\n# Mine")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "There is no folder"),
        (lambda run: (run / "config.json").unlink(), "is no checkpoint: it has no config.json"),
        (lambda run: (run / "preprocessor_config.json").unlink(), "has no image processor"),
        (no_weights, "has no weights in safetensors"),
        (pickled, "pytorch_model.bin is a pickle, which is not published"),
        (sharded, "names shards that are not there: model-00001-of-00001.safetensors"),
        (lacking, "are not those of its config.json: missing keys classifier.1.bias"),
        (not_finite, "1 tensors in .* are NaN or infinite, first classifier.1.bias"),
        (another_architecture, "does not load: .*nothing_known"),
        (own_code, "loads the model with code.py, which is not in the folder"),
        (a_token, "holds a token or another secret"),
        (a_path, "names a folder of this machine"),
        (broken_card, "Our section cannot be added to .*README.md: the YAML at its head cannot be read"),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_published_is_refused_by_name(run, damage, message):
    damage(run)
    with pytest.raises(ValueError, match=message) as refused:
        publish(run, "tester/robust")
    assert "a1B2" not in str(refused.value) and "\n" not in str(refused.value)


def test_a_secret_of_the_environment_is_found(run, monkeypatch):
    monkeypatch.setenv("TRACKER_API_KEY", "0123456789abcdef")
    rewrite(run, notes=["key 0123456789abcdef"])
    with pytest.raises(ValueError, match="holds a token or another secret") as refused:
        publish(run, "tester/robust")
    assert "0123456789" not in str(refused.value)


def test_on_the_command_line_an_error_is_one_line(run, capsys):
    (run / "robustness_report.json").unlink()
    with pytest.raises(SystemExit):
        main(["publish", str(run), "tester/robust"])
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("hf-robust-ft publish: error: There is no robustness_report.json")


@pytest.mark.parametrize("name", ["tester/1st", "tester/curve", "tester/a.b"])
def test_a_space_whose_name_is_no_modules_is_refused(name):
    with pytest.raises(ValueError, match="its name becomes a Python module's"):
        publish_metric(name)
