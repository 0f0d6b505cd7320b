"""The leaderboard against a loopback Hub, through the real client and the real command."""

import json

import pytest
from hub_server import HubServer

from hf_robust_ft import APGD, ThreatModel
from hf_robust_ft.evaluation.detection.report import DetectionReport
from hf_robust_ft.evaluation.scoring import build_report
from hf_robust_ft.reporting import render_model_card


def make_report(smallest, eps="8/255", norm="Linf", **options):
    threat_model = ThreatModel(norm, eps)
    values = [float("inf") if each is None else each * threat_model.eps for each in smallest]
    report = build_report(
        [0] * len(smallest), values, [1] * len(smallest),
        threat_model=threat_model, epsilons=[0, threat_model.eps / 2, threat_model.eps],
        attack=APGD(random_start=False), **options,
    )  # fmt: skip
    return report.with_metadata(dataset="digits", split="test")


def files_of(report, folder):
    report.to_json(folder / "report.json")
    return {"README.md": render_model_card(report), "robustness_report.json": (folder / "report.json").read_text()}


def detection_report(folder):
    scores = {f"{when}_{name}": 0.5 for when in ("clean", "adversarial", "expected") for name in ("map", "map_50")}
    curves = {"epsilons": [0, 0.01], "maps": [0.5, 0.5], "maps_50": [0.5, 0.5], "losses": [1, 1]}
    how = {"threat_model": {"norm": "Linf", "eps": 0.01}, "attack": {}}
    DetectionReport(**scores, **curves, **how, num_samples=1, num_boxes=1, num_classes=2).to_json(folder / "boxes.json")
    return (folder / "boxes.json").read_text()


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    with HubServer(page_size=3) as server:
        weak, strong = make_report([0, 0.5, 0.5, 1]), make_report([None, None, 0.5, 1])
        server.create("tester/weak", files_of(weak, folder))
        server.create("tester/strong", files_of(strong, folder))
        server.create("tester/card-only", {"README.md": render_model_card(make_report([None, 0.5, 0.5, 1]))})
        server.create("tester/exact", files_of(make_report([None, 0.3, 0.4, 0.9], protocol="exact"), folder))
        server.create("tester/half", files_of(make_report([None, None, None, 1], eps="4/255"), folder))
        server.create("tester/norm", files_of(make_report([None] * 4, eps=1.0, norm="L2"), folder))
        other = files_of(weak, folder) | {"README.md": render_model_card(strong)}
        server.create("tester/boasting", other)
        tagged = "---\ntags: [hf_robust_ft]\n---\n"
        server.create("tester/empty", {"README.md": tagged + "# Nothing\n"})
        server.create("tester/broken", {"README.md": tagged, "robustness_report.json": "{"})
        boxes = {"README.md": tagged, "robustness_report.json": detection_report(folder)}
        server.create("tester/boxes", boxes)
        server.create("someone/gated", files_of(strong, folder), gated=True)
        server.create("someone/untagged", {"README.md": "---\ntags: [vision]\n---\n"})
        server.create("stranger/private", files_of(strong, folder), private=True)
        server.create("tester/failing", files_of(strong, folder))
        server.fail("tester/failing/resolve", status=403, times=None)
        yield server


COMMANDS = {
    "refused": [],
    "listed": ["--html", "board.html", "--markdown", "board.md"],
    "mixed": ["tester/weak", "tester/exact", "--one_ranking"],
    "chosen": ["tester/weak", "tester/exact", "tester/none", "--protocol", "exact", "--one_ranking"],
}

# One process for all: importing takes longer than the rest.
SCRIPT = """
import contextlib, io
from hf_robust_ft.cli.main import main

for name, arguments in {commands!r}.items():
    printed, errors, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        try:
            main(["leaderboard", *arguments])
        except SystemExit as stop:
            code = stop.code
    found[name] = dict(printed=printed.getvalue(), errors=errors.getvalue(), code=code)
"""


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    """What each of `COMMANDS` printed, and the folder it ran in."""
    folder = tmp_path_factory.mktemp("client")
    hub.fail("^/api/models$", status=403)
    return hub.run(SCRIPT.format(commands=COMMANDS), folder, token=hub.token), folder


def section(text: str, start: str) -> str:
    (found,) = [part for part in text.split("\n## ") if part.startswith(start)]
    return found


def models(text: str) -> list[str]:
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| ") and "](" in line]
    return [f"{row[1].strip()} {row[2].split(']')[0].strip(' [')}" for row in rows]


def test_every_setting_has_its_own_ranking_best_first(client):
    found = client[0]["listed"]
    text = found["printed"]
    assert found["code"] == 0 and found["errors"] == ""
    paper = section(text, "digits (test split, 4 images), Linf 8/255, protocol paper, grid of 3 points")
    assert models(paper) == ["1 tester/strong", "2 tester/boasting", "2 tester/weak"]
    assert "75.00 %" in paper and paper.count("31.25 %") == 2  # the boasting card's 75 % do not count
    assert models(section(text, "digits (test split, 4 images), Linf 8/255, protocol exact")) == ["1 tester/exact"]
    assert models(section(text, "digits (test split, 4 images), Linf 4/255")) == ["1 tester/half"]
    assert models(section(text, "digits (test split, 4 images), L2 1")) == ["1 tester/norm"]
    card = section(text, "digits (test split, 4 images), Linf 8/255, protocol paper, APGD")
    assert models(card) == ["1 tester/card-only"]


def test_what_cannot_be_read_is_told_with_the_reason(client, hub):
    found = client[0]["listed"]
    text = section(found["printed"], "Not read, or doubtful")
    reasons = dict(line.removeprefix("- ").split(": ", 1) for line in text.splitlines() if line.startswith("- "))
    assert reasons["tester/empty"].startswith("it holds neither a robustness_report.json")
    assert "of object-detection, which is experimental" in reasons["tester/boxes"]
    assert "is no JSON file" in reasons["tester/broken"] and "/" not in reasons["tester/broken"]
    assert reasons["someone/gated"] == "gated, and access was not granted to this token"
    assert "403" in reasons["tester/failing"]
    assert "expected robustness" in reasons["tester/boasting"] and "in the card" in reasons["tester/boasting"]
    everything = found["printed"]
    assert "untagged" not in everything and "private" not in everything
    assert len([entry for entry in hub.requests("GET", "/api/models") if entry.path == "/api/models"]) >= 4  # pages


def test_files_hold_what_was_printed(client):
    found, folder = client[0]["listed"], client[1]
    assert (folder / "board.md").read_text() == found["printed"]
    page = (folder / "board.html").read_text()
    for name in ("tester/strong", "tester/card-only", "someone/gated"):
        assert name in page
    assert "script-src &#39;none&#39;" in page and "<script" not in page and "<link" not in page


def test_one_ranking_names_the_difference_or_is_given(client):
    found, _ = client
    assert found["mixed"]["code"] == 2
    assert "tester/weak and tester/exact differ in protocol (paper, exact)" in found["mixed"]["errors"]
    printed = found["chosen"]["printed"]
    assert models(printed) == ["1 tester/exact"] and "Left out: 1 of other settings." in printed
    assert "tester/none: there is no such repository, or it is private" in printed


def test_figures_are_the_reports_own(hub, client):
    printed = client[0]["chosen"]["printed"]
    report = json.loads(hub.find("tester/exact").files()["robustness_report.json"])
    assert f"{100 * report['expected_robustness']:.2f} %" in printed
    low, high = report["confidence_intervals"]["expected_robustness"]
    assert f"{100 * low:.2f} % to {100 * high:.2f} %" in printed


def test_a_hub_that_does_not_list_is_an_error_in_one_line(client):
    refused = client[0]["refused"]
    assert refused["code"] == 2 and "error: " in refused["errors"].splitlines()[0]
    assert "403" in refused["errors"].splitlines()[0]
