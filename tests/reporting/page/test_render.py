import base64
import gzip
import hashlib
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from page_runs import EVIL, EVIL_IMAGE, LOG_HISTORY, make_pairs, make_report

from hf_robust_ft.cli.main import main
from hf_robust_ft.reporting import page
from hf_robust_ft.reporting.page import figures
from hf_robust_ft.reporting.page.assets import GENERATOR, read_asset, write_page
from hf_robust_ft.reporting.page.protocol_table import protocol_rows
from hf_robust_ft.reporting.page.render import render_page
from hf_robust_ft.reporting.page.runs import Run, Timeline


@pytest.fixture(autouse=True)
def no_charts(monkeypatch):
    """Without Plotly's 5 MB the page is quick to make and to read; the tests in a browser have it."""
    monkeypatch.setattr(figures, "get_plotlyjs", lambda: "const Plotly = {};")


class Page(HTMLParser):
    """The elements of a page and the text of some."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.inside = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag in ("script", "style"):
            self.inside.append(tag)

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self.inside.pop()

    def handle_data(self, data):
        if not self.inside:
            self.text += data


def notices(page: str) -> list[str]:
    found = re.findall(r'<p class="notice"><strong>Careful.</strong> (.*?)</p>', page)
    return [text.replace("&#39;", "'") for text in found]


def test_text_from_reports_stays_text():
    report = make_report(command=EVIL_IMAGE, model_name=EVIL, notes=[EVIL], dataset_revision=EVIL_IMAGE)
    page = render_page(
        [Run(EVIL, report, Timeline.of(LOG_HISTORY), make_pairs()), Run("b", make_report(1))], EVIL_IMAGE
    )
    seen = Page(page)
    assert seen.tags.count("script") == 2 and seen.tags.count("img") == 9  # a stand-in for Plotly, ours; 3 examples
    assert not any(name.startswith("on") for name, _ in seen.attributes)
    assert seen.text.count(EVIL) >= 5 and EVIL_IMAGE in seen.text
    assert "window.hacked = 1</script>" not in page


def test_nothing_is_loaded_from_elsewhere():
    page = render_page([Run("a", make_report())])
    seen = Page(page)
    addresses = [value for name, value in seen.attributes if name in ("src", "href")]
    assert addresses == ["#main"] and "link" not in seen.tags
    with_pictures = Page(render_page([Run("a", make_report(), examples=make_pairs())]))
    sources = [value for name, value in with_pictures.attributes if name == "src"]
    assert len(sources) == 9 and all(source.startswith("data:image/png;base64,") for source in sources)
    assert "default-src 'none'" in dict(seen.attributes)["content"] or "default-src &#39;none&#39;" in page


def test_one_setting_needs_no_caution():
    assert notices(render_page([Run("a", make_report(0)), Run("b", make_report(1))])) == []


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (make_report(norm="L2", eps=0.5), ["different norms (Linf, L2)", "nothing is compared across"]),
        (make_report(eps="4/255"), ["different eps (8/255, 4/255)"]),
        (make_report(protocol="exact"), ["differ in protocol (paper, exact)"]),
        (make_report(images=30), ["number of images (60, 30)"]),
        (make_report(source_digest="f00"), ["differ in the images themselves (not stated, f00)"]),
        (
            replace(make_report(), metadata={"dataset": "cub200"}),
            ["dataset (digits, cub200)", "split (test, not stated)"],
        ),
        (replace(make_report(), attack={"loss": "ce", "steps": 100}), ["attack (APGD-CE-10, APGD-CE-100)"]),
    ],
)
def test_what_keeps_runs_apart_is_said_at_the_top(other, words):
    found = " ".join(notices(render_page([Run("a", make_report()), Run("b", other)])))
    assert all(word in found for word in words)


def test_old_and_bare_reports_are_shown():
    bare = replace(make_report(), confidence_intervals={}, per_class=[], checks=[], smallest_epsilons=[], metadata={})
    text = Page(render_page([Run("bare", bare)])).text
    for words in (
        "No scores by class in the report of",
        "Not checked.",
        "course of training is not known",
        "holds examples",
    ):
        assert words in text


def test_intervals_are_told_by_what_made_them():
    new = make_report()
    ends = {key: found for key, found in new.confidence_intervals.items() if key != "method"}
    old, bare = replace(new, confidence_intervals=ends), replace(new, confidence_intervals={})
    for reports, words in [
        ([new], "95 % intervals over the images (Clopper-Pearson);"),
        ([bare, new, old, new], "95 % intervals over the images (Clopper-Pearson or bootstrap);"),
    ]:
        assert words in Page(render_page([Run(str(index), each) for index, each in enumerate(reports)])).text
    assert "intervals over" not in Page(render_page([Run("bare", bare)])).text
    tested = replace(new, autoattack_accuracy=0.0, autoattack_samples=50)
    tested.confidence_intervals["autoattack_accuracy"] = [0.0, 0.071]
    assert "0.0% (0.0 to 7.1) of 50 images, the first of the data" in Page(render_page([Run("tested", tested)])).text


def test_a_damaged_report_is_refused():
    damaged = replace(make_report(), expected_robustness=0.9)
    with pytest.raises(ValueError, match=r"second cannot be shown, .* Its expected robustness is 0\.9"):
        render_page([Run("first", make_report()), Run("second", damaged)])


def test_settings_that_differ_are_marked():
    rows = protocol_rows([make_report(command="one"), make_report(norm="L2", eps=0.5)])
    found = {row["name"]: (row["values"], row["differs"]) for row in rows}
    assert found["threat model"] == (["Linf 8/255", "L2 0.5"], True) and found["dataset"] == (["digits"] * 2, False)
    assert found["grid"][0] == ["9 eps, every 1/255", "9 eps, every 0.0625"] and found["command"] == (["one", ""], True)
    assert "seed" not in found
    probe = {"epochs": 60.0, "clean_accuracy": 0.61, "adversarial_accuracy": 0.23}
    rows = {row["name"]: row["values"] for row in protocol_rows([make_report(), make_report(probe=probe)])}
    assert rows["head trained first"] == ["", "for 60 epochs, to 61.0%, under attack 23.0% (validation)"]


def test_examples_left_out_are_counted():
    text = Page(render_page([Run("a", make_report(), examples=make_pairs(14))])).text
    assert "the first 12 of 14 examples" in text


def luminance(colour: str) -> float:
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_can_be_told_from_their_ground(theme):
    """WCAG 2.2 AA: 4.5 for text, 3 for the lines of a chart."""
    pairs = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\);", read_asset("page.css"))
    colours = {name: light if theme == "light" else dark for name, light, dark in pairs}
    colours |= {f"run-{run}": colour for run, colour in enumerate(figures.COLOURS)}
    assert len(colours) == 16

    def contrast(name: str, ground: str) -> float:
        high, low = sorted((luminance(colours[each]) for each in (name, ground)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    for name in ("text", "muted", "accent", "warning", "good"):
        assert contrast(name, "surface") >= 4.5 and contrast(name, "background") >= 4.5, name
    assert contrast("text", "notice") >= 4.5
    for run in range(6):
        assert contrast(f"run-{run}", "surface") >= 3, run


def test_the_command_writes_a_page_and_replaces_only_its_own(tmp_path, capsys):
    make_report().to_json(tmp_path / "a.json")
    page = tmp_path / "new" / "page.html"
    for _ in range(2):
        main(["report", str(tmp_path / "a.json"), "--html", str(page), "--title", "Mine", "--names", "first"])
    assert "<title>Mine</title>" in page.read_text() and "page.html: 1 run," in capsys.readouterr().out
    foreign = tmp_path / "README.md"
    foreign.write_text("mine")
    for target, words in ((foreign, "no page that this command wrote"), (tmp_path, "is a folder")):
        with pytest.raises(SystemExit) as stop:
            main(["report", str(tmp_path / "a.json"), "--html", str(target)])
        assert stop.value.code == 2 and words in capsys.readouterr().err.splitlines()[0]
    assert foreign.read_text() == "mine"


def test_a_page_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "page.html"
    write_page(f"{GENERATOR} old", path)
    with pytest.raises(UnicodeEncodeError):
        write_page("\ud800", path)
    assert path.read_text() == f"{GENERATOR} old"


def test_without_plotly_the_error_tells_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    for name in ("figures", "render"):  # imported again
        monkeypatch.delattr(page, name)
        monkeypatch.delitem(sys.modules, f"{page.__name__}.{name}")
    make_report().to_json(tmp_path / "a.json")
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path / "a.json"), "--html", str(tmp_path / "page.html")])
    assert "pip install 'hf_robust_ft[report]'" in capsys.readouterr().err


def test_the_page_tells_whether_training_saw_its_attacks():
    def shown(**training):
        return Page(render_page([Run("a", make_report(training=training))])).text

    assert "its attacks found" not in shown(eps="8/255")
    good, bad = (shown(batch_norm="frozen", attack_loss_seen={"overall": 1.0, "lowest": low}) for low in (1.0, 0.37))
    assert "Training saw what its attacks found" in good and "100% of what was found, at least 100%" in good
    assert "Warning. Training did not see what its attacks found: over a stretch, 37 %" in bad


def test_what_is_true_of_several_runs_is_said_once():
    page = render_page([Run("a", make_report(0)), Run("b", make_report(1)), Run("c", make_report(2))])
    assert page.count("Reliability: doubtful.") == 1 and "<strong>a, b, c.</strong> Reliability: doubtful." in page


def test_the_charts_library_is_packed_and_its_unpacked_text_is_what_may_run(monkeypatch):
    library = "const Plotly = {};" + "/* a long comment */" * 1000
    monkeypatch.setattr(figures, "get_plotlyjs", lambda: library)
    page = render_page([Run("a", make_report(0))])
    (packed,) = re.findall(r'<script type="application/gzip">(.*?)</script>', page)
    assert gzip.decompress(base64.b64decode(packed)).decode() == library and len(packed) < 1000
    assert base64.b64encode(hashlib.sha256(library.encode()).digest()).decode() in page
