import subprocess
import sys

import pytest

from hf_robust_ft.provenance.redacted_command import redacted_command, script_command

TOKEN = "hf_" + "a" * 34


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        (["--eps=4/255", "--seed", "3"], "--eps 4/255 --seed 3"),
        (["--hub_token", "mine", "--lr", "1e-4"], "--hub_token --lr 1e-4"),
        (["--hub-token=mine", "--wandb-api-key", "mine"], "--hub-token --wandb-api-key"),
        (["hub_token=mine", "lr=1"], "lr=1"),
        ([TOKEN, "run"], "run"),
        (["--model", "/home/me/models/vit/", "--data", "~/photos", "runs/a"], "--model vit --data photos runs/a"),
        (["path=/home/me/photos", "--kwargs", "cache=/home/me/cache"], "path=photos --kwargs cache=cache"),
        (["--name", "two words"], "--name 'two words'"),
    ],
)
def test_secrets_and_folders_are_left_out(typed, shown):
    assert redacted_command(["python", "train.py"], typed) == f"python train.py {shown}"


SCRIPT = "from hf_robust_ft.provenance.redacted_command import script_command\nprint(script_command())\n"


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["{folder}/train.py", "--out", "{folder}/run"], "python train.py --out run"),
        (["-m", "train", "--lr", "1"], "python -m train --lr 1"),
        (["-c", SCRIPT, "--lr", "1"], "None"),
        (["{folder}/ipykernel_launcher.py", "-f", "{folder}/kernel.json"], "None"),
    ],
)
def test_a_script_is_named_without_its_folder(tmp_path, words, shown):
    for name in ("train.py", "ipykernel_launcher.py"):
        (tmp_path / name).write_text(SCRIPT)
    path = [str(tmp_path), *sys.path]
    run = subprocess.run(
        [sys.executable, *(word.format(folder=tmp_path) for word in words)],
        env={"PYTHONPATH": ":".join(path)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout.strip() == shown


def test_a_prompt_has_no_command(monkeypatch):
    monkeypatch.setattr(sys, "argv", [""])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    assert script_command() is None
