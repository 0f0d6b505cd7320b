"""`--help` shows what most people need, at once; `--help-all` shows everything."""

import re
import subprocess
import sys
import time

import pytest

from hf_robust_ft.cli.help import FOLDER, short_help
from hf_robust_ft.cli.help.__main__ import render
from hf_robust_ft.cli.main import COMMANDS, main
from hf_robust_ft.runs.option_help import ESSENTIALS, TRAINER_TITLE

COUNT = re.compile(r"\d+ more options")


def options_in(text: str) -> list[str]:
    return re.findall(r"(?m)^  (?:-h, )?(--[\w-]+)", text)


def ours(text: str) -> str:
    """Without what other versions of Trainer may say otherwise: the help of its arguments, and how many there are."""
    sections = re.split(r"\n(?=[a-z].*:\n)", COUNT.sub("N more options", text))
    return "\n".join("\n".join(options_in(each)) if each.startswith(TRAINER_TITLE) else each for each in sections)


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("command", ESSENTIALS)
def test_the_stored_help_is_what_the_parser_says(command):
    assert words(ours(short_help(command))) == words(ours(render(command))), "run python -m hf_robust_ft.cli.help"


def test_every_stored_help_is_of_a_command():
    assert {file.stem for file in FOLDER.glob("*.txt")} == set(ESSENTIALS) <= set(COMMANDS)


@pytest.mark.parametrize("command", ESSENTIALS)
def test_help_fits_on_a_page_and_names_the_way_to_the_rest(command):
    text = short_help(command)
    assert 8 <= len(options_in(text)) <= 22 and text.count("\n") < 70
    assert f"hf-robust-ft {command} --help-all" in words(text) and int(COUNT.search(text)[0].split()[0]) > 10


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("spelling", ["--help-all", "--help_all"])
def test_help_all_shows_every_option_and_more_than_help(command, spelling, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, spelling])
    everything = options_in(capsys.readouterr().out)
    assert not stop.value.code and "--help-all" in everything and len(everything) == len(set(everything))
    if command in ESSENTIALS:
        few = options_in(short_help(command))
        assert set(few) < set(everything)


def test_verify_shows_few_options_of_its_own(capsys):
    for word, there in (("--help", False), ("--help-all", True)):
        with pytest.raises(SystemExit):
            main(["verify", word])
        told = capsys.readouterr().out
        assert ("--label_column" in told) is there and ("hf-robust-ft verify --help-all" in told) is not there
        assert "--examples" in told


def test_help_all_has_trainers_arguments_in_a_group_of_their_own(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help-all"])
    text = capsys.readouterr().out
    assert "--fsdp" in text.split(TRAINER_TITLE)[1] and "--attack_steps" in text.split(TRAINER_TITLE)[0]
    assert "--eps-schedule" not in text


def test_help_beside_a_recipe_shows_its_values(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--config", "quickstart", "--help"])
    text = words(capsys.readouterr().out)
    assert "(default: 8/255)" in text and "--fsdp" not in text


@pytest.mark.parametrize("argv", [["--help"], *([command, "--help"] for command in COMMANDS)], ids=" ".join)
def test_help_imports_no_library_that_takes_seconds(argv):
    command = [sys.executable, "-X", "importtime", "-m", "hf_robust_ft", *argv]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert time.perf_counter() - start < 5  # 0.1 s on a machine that does nothing else
    assert "usage: " in done.stdout
    assert not re.search(r"\| +(torch|transformers|numpy|matplotlib|huggingface_hub)$", done.stderr, flags=re.M)
