"""What people mistype on the command line: one line that names the value and the fix, at once, and nothing written."""

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from hf_robust_ft.cli.main import main


@pytest.fixture
def place(imagefolder, checkpoint, tmp_path, monkeypatch):
    """A folder to work in with a checkpoint `pretrained`, images `colours`, and things that are neither."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "afile").write_text("not a folder")
    (tmp_path / "empty").mkdir()
    (tmp_path / "one" / "train" / "red").mkdir(parents=True)
    for index in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / "one" / "train" / "red" / f"{index}.png")
    for name in ("damaged", "unconfigured", "unprocessed", "misconfigured", "four"):
        shutil.copytree(checkpoint, tmp_path / name)
    weights = (tmp_path / "damaged" / "model.safetensors").read_bytes()
    (tmp_path / "damaged" / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    (tmp_path / "unconfigured" / "config.json").unlink()
    (tmp_path / "unprocessed" / "preprocessor_config.json").unlink()
    (tmp_path / "misconfigured" / "config.json").write_text("{")
    save_file({"a": torch.zeros(2)}, tmp_path / "odd.safetensors")
    return tmp_path


TRAIN = ["train", "--model", "pretrained", "--dataset", "colours", "--output_dir", "run", "--use_cpu"]
EVALUATE = ["evaluate", "--model", "pretrained", "--dataset", "colours", "--output_dir", "measured", "--device", "cpu"]
GRID = ["reproduce", "--models", "pretrained", "--datasets", "colours", "--output_dir", "grid"]
LONG = "x" * 300

COMMANDS = [
    # Numbers out of range, which Trainer takes, or finds out about late.
    ([*TRAIN, "--seed", "-1"], ["seed must be in 0..4294967295, got -1"]),
    ([*TRAIN, "--seed", "5000000000"], ["got 5000000000"]),
    ([*TRAIN, "--learning_rate", "-1e-3"], ["learning_rate must be finite and not negative, got -0.001"]),
    ([*TRAIN, "--learning_rate", "nan"], ["learning_rate must be finite", "got nan"]),
    ([*TRAIN, "--learning_rate", "1e-3.5"], ["learning_rate", "invalid float value: '1e-3.5'"]),
    ([*TRAIN, "--weight_decay", "-1"], ["weight_decay must be finite and not negative, got -1.0"]),
    ([*TRAIN, "--adam_beta2", "1"], ["adam_beta2 must be in [0, 1), got 1.0"]),
    ([*TRAIN, "--max_steps", "0"], ["max_steps must be at least 1 (or -1, for num_train_epochs), got 0"]),
    ([*TRAIN, "--num_train_epochs", "inf"], ["num_train_epochs must be finite, got inf"]),
    ([*TRAIN, "--num_train_epochs", "nan"], ["num_train_epochs must be finite, got nan"]),
    ([*TRAIN, "--label_smoothing_factor", "1.5"], ["label_smoothing_factor must be in [0, 1), got 1.5"]),
    ([*TRAIN, "--dataloader_num_workers", "-1"], ["dataloader_num_workers must be not negative, got -1"]),
    ([*TRAIN, "--save_strategy", "steps", "--save_steps", "0"], ["save_steps must be positive, got 0.0"]),
    ([*TRAIN, "--eval_strategy", "steps", "--eval_steps", "0"], ["eval_steps must be positive, got 0.0"]),
    ([*TRAIN, "--warmup_steps", "-1"], ["warmup_steps", "-1", ">= 0"]),
    ([*TRAIN, "--attack_steps", "0"], ["steps to be a whole number of at least 1, got 0"]),
    # Budgets and schedules.
    ([*TRAIN, "--eps", "-4/255"], ["eps='-4/255' must be finite and not negative"]),
    ([*TRAIN, "--eps", "4:255"], ["eps='4:255' is neither a number nor a fraction", "('4/255')"]),
    ([*TRAIN, "--eval_epsilons", "0,2/255,4/255"], ["'0,2/255,4/255'", "without commas, as 0 4/255 8/255"]),
    ([*TRAIN, "--schedule_start", "12"], ["schedule_start=12.0 must lie in [0, 1]", "epoch 12 of 50 is 0.24"]),
    ([*TRAIN, "--schedule_args", "bend:0.3"], ["key=value, e.g. patience=3; got 'bend:0.3'"]),
    # What is no choice, or no JSON.
    ([*TRAIN, "--optim", "adam"], ["--optim: invalid choice: 'adam'", "adamw_torch"]),
    ([*TRAIN, "--lr_scheduler_kwargs", "{num_cycles: 1}"], ["'{num_cycles: 1}' is no JSON", '{"num_cycles": 0.5}']),
    ([*TRAIN, "--load_best_model_at_end", "--metric_for_best_model", "accuracy"],
     ["metric_for_best_model='accuracy' is not measured", "clean_accuracy"]),
    ([*TRAIN, "--push_to_hub", "--hub_model_id", "my models/x"], ["'my models/x' is no repository id", "OWNER/NAME"]),
    # Folders.
    ([*TRAIN, "--output_dir", "afile"], ["output_dir='afile' is a file: name a folder"]),
    ([*TRAIN, "--output_dir", "afile/run"], ["output_dir='afile/run' lies below", "which is a file"]),
    ([*TRAIN, "--output_dir", ""], ["output_dir='' is no path: it is empty. Name a folder."]),
    ([*TRAIN, "--output_dir", LONG], ["is no path", "File name too long"]),
    ([*EVALUATE, "--output_dir", "afile"], ["output_dir='afile' is a file: name a folder"]),
    (["quickstart", "--output_dir", "afile"], ["output_dir='afile' is a file: name a folder"]),
    # Data and models that are none.
    ([*TRAIN, "--dataset", "afile"], ["afile is a file, but not a .parquet file"]),
    ([*TRAIN, "--dataset", "empty"], ["empty holds no files of images", "Expected empty/train/CLASS/*.jpg"]),
    ([*TRAIN, "--dataset", "one"], ["one", "needs two class folders or more, train/<class>/<image>"]),
    ([*TRAIN, "--label_column", "image"], ["label_column|label column", "image"]),
    ([*TRAIN, "--dataset_revision", "v2"], ["colours lies on this machine and has no revision 'v2'"]),
    ([*TRAIN, "--validation_size", "30"], ["validation_size must be a share between 0 and 1, got 30.0"]),
    ([*TRAIN, "--model", "damaged"], ["weights of damaged are damaged or incomplete", "copy or download them again"]),
    ([*TRAIN, "--model", "unconfigured"], ["unconfigured", "config.json"]),
    ([*TRAIN, "--model", "misconfigured"], ["misconfigured|config.json", "JSON"]),
    ([*TRAIN, "--model", "unprocessed"], ["unprocessed", "preprocessor_config.json"]),
    ([*TRAIN, "--model", "odd.safetensors"], ["odd.safetensors holds tensors only", "architecture='timm/resnet18'"]),
    ([*TRAIN, "--model", "\0x"], ["Unknown model '\\x00x'"]),
    ([*TRAIN, "--image_size", "-3"], ["image_size is a number of pixels, got -3"]),
    ([*TRAIN, "--image_size", "0"], ["image_size is a number of pixels, got 0"]),
    # Measuring.
    ([*EVALUATE, "--split", "tset"], ["Unknown split 'tset'. Did you mean test? Valid: train, validation, test"]),
    ([*EVALUATE, "--norm", "linf"], ["Unknown norm 'linf'. Did you mean Linf? Valid norms: Linf, L2, L1"]),
    ([*EVALUATE, "--epsilons", "4/255"], ["epsilons must start at 0"]),
    (
        [*EVALUATE, "--device", "tpu"],
        ["device 'tpu' cannot be used here: PyTorch knows no such device. Give cpu, cuda"],
    ),
    ([*EVALUATE, "--model", "empty"], ["empty is no checkpoint: it has no config.json"]),
    (["verify", "nonsense"], ["There is no file or folder nonsense here", "nonsense of the Hub cached"]),
    ([*EVALUATE], ["tells 9 classes apart, the dataset has 4", "fine-tuned on this dataset"]),
    # Other commands.
    (["train", "--model", "r50"], ["required: --dataset"]),
    (["train", "--model", "pretrained", "--dataset", "colours", "--seed"], ["--seed: expected one argument"]),
    (["publish", "pretrained"], ["required: REPO"]),
    (["quickstart", "--seeds", "0", "1", "0"], ["seeds=[0, 1, 0]: give each seed once"]),
    (["report", "nowhere"], ["There is no file or folder nowhere"]),
    (["report", "afile"], ["afile is no JSON file"]),
    (["leaderboard", "--limit", "0"], ["limit must be at least 1, got 0"]),
    (["diagnose", "--runs", "empty"], ["empty holds no trainer_state.json", "output_dir of a Trainer run"]),
    ([*GRID, "--settings", "hinge:37,12"], ["'hinge:37,12'", "0 <= T1 <= T2 <= 50"]),
    ([*GRID, "--settings", "fix", "--only", "swin*"], ["No cell matches --only swin*"]),
    ([*GRID, "--settings", "fix", "fix"], ["give each value once"]),
]  # fmt: skip


@pytest.mark.parametrize(("words", "told"), COMMANDS, ids=lambda value: "_".join(value[-3:])[:60].replace("\0", "NUL"))
def test_one_line_and_nothing_written(place, capsys, words, told):
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    with pytest.raises(SystemExit) as stop:
        main(words)
    lines = capsys.readouterr().err.splitlines()
    (error,) = [line for line in lines if line.startswith("hf-robust-ft ")]
    assert stop.value.code == 2 and error.startswith(f"hf-robust-ft {words[0]}: error: ")
    assert lines[lines.index(error) + 1 :] == []  # a message that names cause and cure needs no traceback
    for part in told:
        assert any(each in error for each in part.split("|")), (part, error)
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before


def test_a_mistyped_command_names_the_nearest():
    with pytest.raises(SystemExit, match=r"unknown command 'trian'\. Did you mean train"):
        main(["trian", "--model", "vit"])


def test_finished_work_outlives_a_bad_second_command(place, capsys):
    """A run's folder is not touched by a command that is refused after it."""
    (place / "run").mkdir()
    (place / "run" / "robustness_report.json").write_text(json.dumps({"mine": 1}))
    for changes in (["--eps", "4"], ["--resume_from_checkpoint", "last"], []):
        with pytest.raises(SystemExit):
            main([*TRAIN, *changes])
        assert [path.name for path in (place / "run").iterdir()] == ["robustness_report.json"]
        assert json.loads((place / "run" / "robustness_report.json").read_text()) == {"mine": 1}
