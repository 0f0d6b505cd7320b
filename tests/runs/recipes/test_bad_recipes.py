"""What people write into recipes by mistake: told with the file's name, before anything is loaded or written."""

import pytest

from hf_robust_ft.cli.main import main
from hf_robust_ft.runs.recipes import read_recipe

RECIPES = [
    ("eps: 4/255\neps: 8/255\n", ["line 2", 'duplicate key "eps"', "8/255", "4/255"]),
    ("a: &x [1, 2]\nb: *x\n", ["line 2", "*x: write values out"]),
    ("eps: 4/255\n\tattack_steps: 3\n", ["is not valid YAML", "line 2"]),
    ("---\neps: 4/255\n---\neps: 8/255\n", ["is not valid YAML", "single document"]),
    ("eps: !!python/object/apply:os.system ['touch ran']\n", ["could not determine a constructor", "line 1"]),
    ("training:\n  eps: 4/255\n", ["Unknown recipe key 'training'"]),
    ("eps-schedule: hinge\n", ["Unknown recipe key 'eps-schedule'", "eps_schedule"]),
    ("epsilon: 4/255\n", ["Unknown recipe key 'epsilon'", "Did you mean"]),
    ("eps 4/255\n", ["must map argument names to values", "it holds a str"]),
    ("# nothing but a comment\n", ["it holds nothing"]),
    ("eps: 4\n", ["Did you mean eps='4/255'"]),
    ("eps: [4/255]\n", ["Recipe key 'eps' takes one value, got the list ['4/255']"]),
    ("learning_rate: {head: 1.0e-3}\n", ["Recipe key 'learning_rate' takes no mapping, got {'head': 0.001}"]),
    ("num_train_epochs:\n", ["Recipe key 'num_train_epochs' has no value"]),
    ("seed: 1.5\n", ["--seed: invalid int value: '1.5'"]),
    ("bf16: perhaps\n", ["bf16", "perhaps"]),
    ("norm: no\n", ["Unknown norm 'no'. Valid norms: Linf"]),
    ("eval_epsilons: 0, 4/255\n", ["epsilons holds '0, 4/255'", "without commas"]),
    ("schedule_args: {bend: 0.3}\n", ["The schedule 'hinge' does not take bend"]),
    ("force_resume: true\n", ["may not set force_resume", "on the command line"]),
    (b"eps: 4/255 # \xff\xfe\n", ["is not valid YAML"]),
    (b"\x89PNG\r\n\x1a\n\x00", ["is not valid YAML"]),
    ("a: " + "[" * 3000 + "]" * 3000, ["is not valid YAML", "nested too deeply"]),
]


@pytest.mark.parametrize(("content", "told"), RECIPES, ids=lambda value: str(value)[:30] if len(value) > 2 else "")
def test_told_in_one_line_and_nothing_written(tmp_path, monkeypatch, capsys, content, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SystemExit) as stop:
        main(["train", "--config", "mine.yaml", "--model", "vit", "--dataset", "digits", "--output_dir", "run"])
    (error,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and all(part in error for part in told), error
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


@pytest.mark.parametrize("name", ["../recipes/lora", "grids/digits", "/etc/hostname\0", "x" * 5000, ".", ""])
def test_only_files_and_shipped_names_are_recipes(name):
    with pytest.raises(ValueError, match="There is no recipe"):
        read_recipe(name)


def test_a_folder_is_no_recipe_that_was_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").mkdir()
    with pytest.raises(ValueError, match=r"Did you mean trades\?"):
        read_recipe("tradess")
    (tmp_path / "trade.yaml").write_text("eps: 4/255\n")
    with pytest.raises(ValueError, match=r"Did you mean trade.yaml\?"):
        read_recipe("tradex.yaml")


def test_no_is_a_word(tmp_path):
    (tmp_path / "mine.yaml").write_text("save_strategy: no\nrobust_eval: no\nbf16: false\nema_warmup: no\n")
    assert read_recipe(tmp_path / "mine.yaml") == {
        "save_strategy": "no", "robust_eval": "no", "bf16": False, "ema_warmup": "no",
    }  # fmt: skip
