"""What the README promises is what runs."""

import json
import os
import re
from pathlib import Path

import pytest
from conftest import NUM_CLASSES
from forked import LIBRARIES

from hf_robust_ft.experiments.quickstart import comparison_table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def drop_in_scripts() -> tuple[str, str]:
    """The README's diff as the script before and the script after."""
    (diff,) = re.findall(r"```diff\n(.*?)```", README, flags=re.S)
    lines = diff.splitlines()
    before = "\n".join(line[1:] for line in lines if not line.startswith("+"))
    after = "\n".join(line[1:] for line in lines if not line.startswith("-"))
    return before, after


def test_the_whole_diff_is_two_class_names():
    before, after = drop_in_scripts()
    imports = re.compile(r"^from (transformers|hf_robust_ft) import .*\n", flags=re.M)
    renamed = re.sub(r"(?<!Adversarial)\b(TrainingArguments|Trainer)\(", r"Adversarial\1(", before)
    assert imports.sub("", renamed) == imports.sub("", after)
    assert "hf_robust_ft" not in before and "hf_robust_ft import AdversarialTrainer" in after


@pytest.mark.parametrize("which", ["before", "after"])
def test_both_scripts_run(which, make_model, processor, images, tmp_path):
    make_model("vit", num_labels=NUM_CLASSES).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    for index, example in enumerate(images):
        split = "validation" if index >= 32 else "train"
        folder = tmp_path / "data" / split / images.features["label"].names[example["label"]]
        folder.mkdir(parents=True, exist_ok=True)
        example["image"].save(folder / f"{index}.png")
    script = drop_in_scripts()[which == "after"]
    script, models = re.subn(r'(?m)^model_id = ".*"', f"model_id = {str(tmp_path / 'model')!r}", script)
    script, datasets = re.subn(r'(?m)^dataset_id = ".*"', f"dataset_id = {str(tmp_path / 'data')!r}", script)
    script, epochs = re.subn(r"num_train_epochs=\d+", "num_train_epochs=4, use_cpu=True", script)
    assert models == datasets == epochs == 1
    script += "\nimport json; print('METRICS', json.dumps(metrics))\n"
    (tmp_path / "script.py").write_text(script)
    done = LIBRARIES.run(tmp_path / "script.py", [dict(os.environ)], tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout.split("METRICS ")[1].splitlines()[0])
    assert "eval_accuracy" in metrics
    added = {"eval_clean_accuracy", "eval_adversarial_accuracy", "eval_expected_robustness"}
    assert (added <= set(metrics)) == (which == "after")
    if which == "after":
        assert metrics["eval_clean_accuracy"] == metrics["eval_accuracy"]


def test_the_quickstart_table_is_the_committed_runs():
    scores = json.loads((ROOT / "model_cards" / "quickstart" / "comparison.json").read_text())
    assert comparison_table(scores) in README


def test_pictures_are_there():
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert pictures and all((ROOT / picture).is_file() for picture in pictures)


def test_there_are_two_commands_for_a_fresh_machine():
    commands = re.findall(r"<!-- (\w+) command -->\n```bash\n(.*?)```", README, flags=re.S)
    assert [name for name, _ in commands] == ["quickstart", "test"]
    for _, command in commands:
        assert "python3 -m venv .venv" in command and "pip install" in command
