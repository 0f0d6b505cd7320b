"""No checkpoint runs code of its own, or is unpickled, unless that is asked for."""

import json
import logging
import shutil

import pytest
import torch
from finished_run import write_run

from hf_robust_ft import load_image_classifier
from hf_robust_ft.cli.main import main
from hf_robust_ft.hub import PublishError, publish

NAMES = ["red", "green", "blue", "yellow"]
CODE = """
import pathlib
from transformers import ResNetConfig, ResNetForImageClassification
pathlib.Path({ran!r}).touch()
class OwnConfig(ResNetConfig):
    model_type = "own_resnet"
class OwnForImageClassification(ResNetForImageClassification):
    config_class = OwnConfig
"""


@pytest.fixture
def ran(tmp_path):
    """The file that the checkpoint's code makes when it runs."""
    return tmp_path / "code_ran"


def bring_code(folder, ran):
    (folder / "own.py").write_text(CODE.format(ran=str(ran)))
    config = json.loads((folder / "config.json").read_text()) | {
        "model_type": "own_resnet",
        "architectures": ["OwnForImageClassification"],
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForImageClassification": "own.OwnForImageClassification"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def with_code(make_model, processor, tmp_path, ran, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda text: pytest.fail("the user was asked, not refused"))
    make_model("resnet").save_pretrained(tmp_path / "own")
    processor.save_pretrained(tmp_path / "own")
    return bring_code(tmp_path / "own", ran)


def test_code_is_not_run_unasked(with_code, ran):
    with pytest.raises(ValueError, match=r"brings Python code of its own, .*trust_remote_code") as refused:
        load_image_classifier(str(with_code), label_names=NAMES)
    assert not ran.exists() and "\n" not in str(refused.value)
    model, _ = load_image_classifier(str(with_code), label_names=NAMES, trust_remote_code=True)
    assert ran.exists() and type(model).__name__ == "OwnForImageClassification"


def test_code_behind_a_known_type_is_not_run_either(with_code, ran):
    """Where transformers knows the type itself, its own class is taken."""
    config = json.loads((with_code / "config.json").read_text()) | {"model_type": "resnet"}
    (with_code / "config.json").write_text(json.dumps(config))
    model, _ = load_image_classifier(str(with_code), label_names=NAMES)
    assert type(model).__module__.startswith("transformers.models.resnet") and not ran.exists()


def test_nor_that_of_an_image_processor(with_code, make_model, ran):
    make_model("resnet").save_pretrained(with_code)
    path = with_code / "preprocessor_config.json"
    own = {"image_processor_type": "OwnProcessor", "auto_map": {"AutoImageProcessor": "own.OwnConfig"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    with pytest.raises(ValueError, match="brings Python code of its own"):
        load_image_classifier(str(with_code), label_names=NAMES)
    assert not ran.exists()


@pytest.mark.parametrize("command", ["train", "train --dry-run", "evaluate", "search"])
def test_no_command_runs_it(with_code, imagefolder, tmp_path, ran, capsys, command):
    words = [*command.split(), "--model", str(with_code), "--dataset", imagefolder, "--eps", "8/255"]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--output_dir", str(tmp_path / "out")])
    told = capsys.readouterr().err
    assert stop.value.code == 2 and "--trust_remote_code" in told and not ran.exists()
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_asked_for_a_command_runs_it(with_code, imagefolder, ran, capsys):
    main([
        "train", "--dry-run", "--model", str(with_code), "--dataset", imagefolder, "--trust_remote_code",
    ])  # fmt: skip
    assert ran.exists() and "Plan: nothing is trained" in capsys.readouterr().out


def test_a_recipe_cannot_ask_for_it(with_code, imagefolder, tmp_path, ran, capsys):
    (tmp_path / "theirs.yaml").write_text(f"model: {with_code}\ndataset: {imagefolder}\ntrust_remote_code: true\n")
    with pytest.raises(SystemExit):
        main(["train", "--config", str(tmp_path / "theirs.yaml")])
    assert "theirs.yaml may not set trust_remote_code: give it on the command line" in capsys.readouterr().err
    assert not ran.exists()


def test_publish_runs_it_only_if_asked(tmp_path, ran):
    folder = bring_code(write_run(tmp_path / "run"), ran)
    with pytest.raises(ValueError, match=r"brings code of its own \(own\.py\).*--trust_remote_code"):
        publish(folder, "tester/own")
    assert not ran.exists()
    with pytest.raises(PublishError, match="offline mode"):
        publish(folder, "tester/own", trust_remote_code=True)
    assert ran.exists()


@pytest.fixture
def pickled(make_model, processor, tmp_path):
    folder = tmp_path / "pickled"
    model = make_model("resnet")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def test_pickled_weights_are_refused_and_the_way_out_works(pickled, caplog):
    with pytest.raises(ValueError, match=r"pickles \(pytorch_model.bin\) are not loaded.*save_pretrained") as refused:
        load_image_classifier(str(pickled), label_names=NAMES)
    assert "\n" not in str(refused.value)
    with caplog.at_level(logging.ERROR):
        model, _ = load_image_classifier(
            str(pickled / "pytorch_model.bin"), architecture=str(pickled), label_names=NAMES, head="keep"
        )
    saved = torch.load(pickled / "pytorch_model.bin", weights_only=True)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in saved.items())


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("name", ["weights.pt", "weights.bin"])
def test_a_hostile_weight_file_does_nothing(tmp_path, ran, name):
    torch.save({"weight": Hostile(str(ran))}, tmp_path / name)
    with pytest.raises(ValueError, match="cannot be read as plain tensors"):
        load_image_classifier(str(tmp_path / name), architecture="timm/test_resnet", label_names=NAMES)
    assert not ran.exists()


def test_a_hostile_checkpoint_of_training_does_nothing(make_trainer, tmp_path, ran):
    settings = {"num_train_epochs": 1, "save_strategy": "steps", "save_steps": 5}
    trainer = make_trainer(**settings)
    trainer.train()
    saved = f"{trainer.args.output_dir}/checkpoint-5"

    def resume_with(name, *, without=None):
        checkpoint = shutil.copytree(saved, tmp_path / f"checkpoint-with-{name}")
        torch.save({"state": Hostile(str(ran))}, checkpoint / name)
        if without:
            (checkpoint / without).unlink()
        make_trainer(**settings).train(resume_from_checkpoint=str(checkpoint))

    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        with pytest.raises(Exception, match=r"[Ww]eights.only|Unsupported"):
            resume_with(name)
    with pytest.raises(ValueError, match="no weights in safetensors"):
        resume_with("pytorch_model.bin", without="model.safetensors")
    resume_with("training_args.bin")  # written, never read
    assert not ran.exists()
