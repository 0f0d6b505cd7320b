"""What `publish` puts on the Hub is what `leaderboard` reads there, and in the folder it was published from."""

import pytest
from finished_run import write_run
from hub_server import HubServer

from hf_robust_ft import RobustnessReport

# With restarts and random starts: what a card says of them must be what its report says.
ATTACK = {"steps": 40, "loss": "dlr", "random_start": True, "restarts": 5, "select": "fooled"}

SCRIPT = """
import contextlib, io
from hf_robust_ft.cli.main import main

def printed(*words):
    with contextlib.redirect_stdout(io.StringIO()) as text:
        main(list(words))
    return text.getvalue()

for name in ("plain", "restarts", "card"):
    printed("publish", name, f"tester/{name}", "--license", "mit")
found["tagged"] = printed("leaderboard")
found["named"] = printed("leaderboard", "tester/plain", "plain", "--one_ranking")
"""
CARDS = """
import pathlib
from huggingface_hub import HfApi
HfApi().delete_file("robustness_report.json", "tester/card")
""" + SCRIPT.replace('for name in ("plain", "restarts", "card"):', "for name in ():")


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    folder = tmp_path_factory.mktemp("read")
    for seed, name in enumerate(("plain", "restarts", "card")):
        write_run(folder / name, seed)
    path = folder / "restarts" / "robustness_report.json"
    report = RobustnessReport.from_json(path)
    report.attack.update(ATTACK)
    report.to_json(path)
    with HubServer() as hub:
        hub.create("someone/else", {"README.md": "---\ntags: [vision]\n---\n"})
        yield hub.run(SCRIPT, folder, token=hub.token), hub.run(CARDS, folder, token=hub.token)


def rows(text: str) -> list[list[str]]:
    """Of each row: place, model, and its scores."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    return [[cells[1].split("]")[0].strip("["), *cells[2:]] for cells in lines if cells[1] != "model"]


def test_each_published_model_stands_once_with_the_figures_of_its_report(read):
    text = read[0]["tagged"]
    assert sorted(row[0] for row in rows(text)) == ["tester/card", "tester/plain", "tester/restarts"]
    assert all(row[1] == "70.00 %" and row[3:6] == ["50.00 %", "", "90.00 %"] for row in rows(text))
    assert "APGD-DLR-40, 5 restarts, random start" in text and "Not read" not in text


def test_the_folder_and_its_repository_are_of_one_setting(read):
    assert [row[0] for row in rows(read[0]["named"])] == ["plain", "tester/plain"]


def test_a_published_card_alone_is_enough(read):
    assert sorted(row[0] for row in rows(read[1]["tagged"])) == ["tester/card", "tester/plain", "tester/restarts"]
    assert "Not read" not in read[1]["tagged"]
