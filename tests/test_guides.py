"""The README and the guides: links lead somewhere, commands are ones that the command line takes."""

import importlib
import re
import shlex
import sys
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path

import pytest

from hf_robust_ft.cli import main as cli

ROOT = Path(__file__).parent.parent
GUIDES = sorted((ROOT / "notebooks" / "guides").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "notebooks" / "README.md", *GUIDES, *sorted((ROOT / ".github").glob("**/*.md"))]
PAGES += sorted(ROOT.glob("model_cards/*/README.md"))
RUNS = ("train", "evaluate", "reproduce", "search", "diagnose", "calibrate")  # whose values are read as well as names


def names(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(ROOT)) for page in pages]


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    titles = re.findall(r"(?m)^#+ (.*)$", text)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_links_and_pictures_lead_to_files_and_headings(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if path.startswith(("https://", "mailto:")):
            continue
        found = (page.parent / path).resolve() if path else page
        if not found.exists() or (anchor and anchor not in anchors(found)):
            broken.append(target)
    assert not broken


def test_the_front_page_is_short_and_leads_to_every_guide():
    front, index = ((ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "notebooks/README.md"))
    assert len(front.splitlines()) <= 220
    for page in GUIDES:
        assert f"notebooks/guides/{page.name}" in front and f"guides/{page.name}" in index, page.name
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"({notebook.name})" in index, notebook.name


@pytest.mark.parametrize("page", GUIDES, ids=names(GUIDES))
def test_a_guide_begins_with_one_screen_of_essentials(page):
    essentials = page.read_text(encoding="utf-8").split("\n## ")[0]
    assert "```" in essentials and 8 < len(essentials.splitlines()) <= 45


def filled_in(block: str) -> str:
    """A block of commands with its variables' values, and 0 for those that come from elsewhere."""
    values = dict(re.findall(r'(?m)^(\w+)="(.*)"$', block))
    return re.sub(r"\\?\$(\w+)", lambda name: values.get(name[1], "0"), block)


def commands(page: Path) -> list[list[str]]:
    """Every command of ours on a page, as words; `...` where the page leaves something out."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.S)
    inline = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    lines = [line for block in blocks for line in filled_in(block).replace("\\\n", " ").splitlines()]
    found = []
    for line in [*lines, *(" ".join(code.split()) for code in inline)]:
        for part in line.split("&&"):
            ours = re.search(r"(?:^|[ /])(?:hf-robust-ft|-m hf_robust_ft) ([a-z].*)", part)
            benchmark = re.search(r"-m (hf_robust_ft\.benchmarks\.\w.*)", part)
            bare = re.match(rf"((?:{'|'.join(cli.COMMANDS)}) .*--.*)", part)
            match = ours or benchmark or bare
            if match:
                within_quotes = part[: match.start(1)].count('"') % 2  # the word of another command
                found.append(shlex.split(match[1].partition('"')[0] if within_quotes else match[1], comments=True))
    return found


ALL = [(str(page.relative_to(ROOT)), words) for page in PAGES for words in commands(page)]


def test_commands_are_found_on_the_pages():
    assert len(ALL) > 80 and len({words[0] for _, words in ALL}) > 18


@cache
def help_of(command: str) -> str:
    """All that a command says of its options."""
    said, argv = StringIO(), sys.argv
    try:
        with redirect_stdout(said), pytest.raises(SystemExit):
            if command in cli.COMMANDS:
                cli.main([command, "--help-all"])
            else:
                sys.argv = [command, "--help"]
                module = importlib.import_module(command)
                whole = hasattr(module, "__path__")  # a folder, which `python -m` enters by its __main__
                (importlib.import_module(f"{command}.__main__") if whole else module).main()
    finally:
        sys.argv = argv
    return said.getvalue()


@pytest.mark.parametrize(("page", "words"), ALL, ids=[f"{page}:{' '.join(words)[:60]}" for page, words in ALL])
def test_every_option_on_a_page_is_one_that_the_command_has(page, words):
    command, *rest = words
    assert command in cli.COMMANDS or command.startswith("hf_robust_ft.benchmarks."), command
    told = help_of(command) + (help_of("train") if command == "reproduce" else "")
    for word in rest:
        if re.match(r"--[a-z]", word):
            assert re.search(rf"{word.split('=')[0].replace('-', '[-_]')}\b", told), f"{command} {word}"


class Read(Exception):
    """A command's options were read: what it would do now is not for this test."""


COMPLETE = {"--model", "--models", "--grid", "--runs"}
WHOLE = [
    (page, words) for page, words in ALL if words[0] in RUNS and COMPLETE & set(words) and "..." not in " ".join(words)
]


@pytest.mark.parametrize(("page", "words"), WHOLE, ids=[f"{page}:{' '.join(words)[:60]}" for page, words in WHOLE])
def test_the_values_of_a_whole_command_can_be_read(page, words, monkeypatch, tmp_path):
    def read(*args, **kwargs):
        raise Read

    monkeypatch.chdir(tmp_path)
    Path("found.yaml").write_text("learning_rate: 1.0e-3\n")
    Path("recipe.yaml").write_text("learning_rate: 1.0e-3\n")
    Path("vit_random").mkdir()  # which the guide makes before
    for work in (
        "runs.fine_tune.fine_tune", "experiments.planning.plan_run", "runs.evaluate.measure",
        "experiments.search.search", "experiments.diagnose.diagnose", "experiments.diagnose.calibrate",
        "experiments.diagnose.diagnose_runs", "experiments.grid.reproducing.reproduce",
    ):  # fmt: skip
        monkeypatch.setattr(f"hf_robust_ft.{work}", read)
    with pytest.raises(Read):
        cli.COMMANDS[words[0]]([*words[1:], *(["--use_cpu"] if "train" in words[0] else [])])
