"""The page in a headless Chromium: what it computes and shows, and that keyboard and phone are enough to use it."""

import os
import shutil

import numpy as np
import pytest
from colour_segmenter import ColourSegmenter
from page_runs import CLASSES, EVIL, LOG_HISTORY, make_pairs, make_report
from tiny_segmenters import IGNORED, scenes

from hf_robust_ft import APGD, PixelSpace, ThreatModel, evaluate_segmentation
from hf_robust_ft.attacks.threat_model import format_eps
from hf_robust_ft.reporting.page.render import render_page
from hf_robust_ft.reporting.page.runs import Run, Timeline
from hf_robust_ft.reporting.page.slider import robustness_up_to
from hf_robust_ft.reporting.segmentation.overlays import draw_overlays

pytestmark = pytest.mark.browser
NONE = "\u2013"  # a dash where there is nothing to tell
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="needs Playwright (pip install hf_robust_ft[browser])"
    )
    pytest.importorskip("plotly", reason="needs Plotly (pip install hf_robust_ft[report])")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"needs an installed Chromium ({', '.join(BROWSERS)})")
    as_root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=program, args=as_root)
        yield running
        running.close()


RUNS = [
    Run(EVIL, make_report(0, notes=[EVIL]), Timeline.of(LOG_HISTORY), make_pairs()),
    Run("second", make_report(1)),
    Run("half", make_report(2, eps="4/255")),
    Run("exact", make_report(3, protocol="exact"), examples=make_pairs(2)),
    Run("euclid", make_report(4, norm="L2", eps=0.5), Timeline.of(LOG_HISTORY)),
]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(render_page(RUNS), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def masks_page_file(tmp_path_factory):
    """Of two runs of segmentation, one with overlays."""
    folder = tmp_path_factory.mktemp("masks")
    threat_model, data = ThreatModel("Linf", "8/255"), scenes(2)
    options = {"threat_model": threat_model, "attack_steps": 1, "checks": False, "progress": False}
    reports = [evaluate_segmentation(ColourSegmenter(stride), data, **options) for stride in (1, 2)]
    attack = APGD(steps=1, loss="pixel_ce", random_start=False)
    names = ["red", "green", "blue", "yellow"]
    how = {"threat_model": threat_model, "attack": attack, "class_names": names, "ignore_index": IGNORED}
    draw_overlays(ColourSegmenter(), PixelSpace(), data, folder, count=1, **how)
    path = folder / "page.html"
    page = render_page(
        [Run("sharp", reports[0], strips=(folder / "examples" / "example_000.png",)), Run("coarse", reports[1])]
    )
    path.write_text(page, encoding="utf-8")
    return path


@pytest.fixture
def visit(browser, page_file):
    """Open the page with the browser's settings; at the end it must have asked for nothing and reported no error."""
    contexts, complaints, requests, opened = [], [], [], set()

    def open_page(file=page_file, **settings):
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | settings))
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.on("request", lambda request: requests.append(request.url))
        opened.add(file.as_uri())
        page.goto(file.as_uri())
        page.wait_for_selector(".curves .main-svg")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert {url for url in requests if not url.startswith(("data:", "blob:"))} == opened


def expected_cells(page, group=0):
    return page.locator(".group").nth(group).locator("td.expected").all_inner_texts()


def test_the_slider_tells_expected_robustness_over_its_range(visit):
    page = visit()
    slider = page.locator("#eps-0")
    slider.focus()
    maximum = int(slider.get_attribute("max"))
    assert int(slider.input_value()) == maximum // 2  # the range that all runs were measured in
    reports = [run.report for run in RUNS[:4]]
    for key, tick in (("End", maximum), ("ArrowLeft", maximum - 1), ("PageDown", None), ("Home", 0), ("ArrowRight", 1)):
        page.keyboard.press(key)
        now = int(slider.input_value())
        assert tick is None or now == tick
        eps = 8 / 255 * now / maximum
        for told, report in zip(expected_cells(page), reports, strict=True):
            if eps > report.epsilons[-1] + 1e-9:
                assert told == f"not measured beyond Linf {format_eps(report.epsilons[-1])}"
            else:
                wanted = 100 * robustness_up_to(report, min(eps, report.epsilons[-1]))
                assert float(told.removesuffix(" %")) == pytest.approx(wanted, abs=0.00501)
    slider.press("End")
    row = page.locator(".group").first.locator("tbody tr").nth(1)
    assert row.locator(".expected").inner_text() == f"{100 * reports[1].expected_robustness:.2f} %"
    assert row.locator(".accuracy").inner_text() == f"{100 * reports[1].adversarial_accuracy:.1f} %"
    assert slider.get_attribute("aria-valuetext") == "eps 8/255" == "eps " + page.locator("#eps-value-0").inner_text()
    ends = page.evaluate("document.querySelector('.curves').layout.shapes.map((shape) => shape.x1)")
    assert ends == pytest.approx([8, 8])


def test_differences_are_told_where_runs_can_be_compared(visit):
    page = visit()
    page.locator("#eps-0").press("End")
    told = page.locator(".group").first.locator("td.difference").all_inner_texts()
    first, second = (run.report.expected_robustness for run in RUNS[:2])
    assert told[0] == told[2] == NONE
    assert float(told[1].split()[0].replace("\u2212", "-")) == pytest.approx(100 * (second - first), abs=0.006)
    assert told[3] == "not comparable: other protocol (exact, paper)"
    assert "not measured beyond Linf 4/255" in page.locator(".group").first.inner_text()
    page.locator(".group").first.locator(".baseline").select_option(label="exact")
    told = page.locator(".group").first.locator("td.difference").all_inner_texts()
    assert told[3] == NONE and told[1] == "not comparable: other protocol (paper, exact)"


def test_text_from_reports_is_shown_and_not_run(visit):
    page = visit()
    assert page.evaluate("window.hacked") is None
    assert EVIL in page.locator(".scores").inner_text()
    drawn = page.evaluate("document.querySelector('.by-class').data[0]")
    assert drawn["name"] == EVIL.replace("<", "&lt;").replace(">", "&gt;")
    labels = page.locator(".by-class .ytick").all_text_contents()
    assert any(label.startswith("<script>") for label in labels)
    assert page.locator(".by-class").first.evaluate("(chart) => chart.querySelectorAll('script').length") == 0


def test_charts_hold_the_runs_that_are_ticked(visit):
    page = visit()
    seen = "data.filter((trace) => trace.visible !== 'legendonly')"
    names = f"document.querySelector('.curves').{seen}.map((trace) => trace.name).filter(Boolean)"
    assert len(page.evaluate(names)) == 4
    box = page.locator(".show").nth(1)
    box.focus()
    page.keyboard.press("Space")
    assert page.evaluate(names)[1:] == ["half (doubtful)", "exact (doubtful)"]
    count = page.locator(".group").nth(1).locator(".curves").evaluate(f"(chart) => chart.{seen}.length")
    assert count == 2  # band and curve
    assert page.locator(".by-class").first.evaluate(f"(chart) => chart.{seen}.length") == 1
    page.keyboard.press("Space")
    assert len(page.evaluate(names)) == 4


def test_hovering_tells_the_value_and_its_interval(visit):
    page = visit()
    chart = page.locator(".curves").first
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.4 * box["height"])
    page.wait_for_selector(".hoverlayer .legend text")
    text = " ".join(page.locator(".hoverlayer .legend text").all_text_contents())
    low, high = RUNS[1].report.confidence_intervals["accuracies"][4]
    wanted = f"second (doubtful) : {100 * RUNS[1].report.accuracies[4]:.1f} %  ({100 * low:.1f} to {100 * high:.1f})"
    assert "eps 4/255" in text and wanted in text.replace("\xa0", " ")
    assert all(name in text for name in ("half", "exact"))


def test_the_keyboard_reaches_everything(visit):
    page = visit()
    reached = []
    script = """() => { const element = document.activeElement;
        return [element.id || element.className || element.tagName, getComputedStyle(element).outlineStyle]; }"""
    while not reached or reached[-1][0] != "BODY":
        page.keyboard.press("Tab")
        reached.append(page.evaluate(script))
        assert len(reached) < 100, reached
    names = [name for name, _ in reached]
    assert names[:2] == ["skip", "theme"] and names.count("show") == len(RUNS)
    for name in ("eps-0", "eps-1", "baseline", "score", "order", "previous-example", "next-example", "amplification"):
        assert name in names, name
    assert "SUMMARY" in names
    assert all(outline != "none" for name, outline in reached if name != "BODY")
    summary = page.locator("details > summary").first
    summary.focus()
    page.keyboard.press("Enter")
    assert page.get_by_role("cell", name=f"{100 * RUNS[1].report.accuracies[0]:.1f} %").first.is_visible()


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_scrolls_in_one_direction(visit, width):
    page = visit(viewport={"width": width, "height": 700}, is_mobile=True, has_touch=True)
    outside = """() => [...document.querySelectorAll("body *")]
        .filter((element) => !element.closest(".scroll, svg, .skip, .hidden, details"))
        .filter((element) => element.getBoundingClientRect().right > innerWidth + 1)
        .map((element) => element.id || element.className || element.tagName)"""
    assert page.evaluate(outside) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # Nothing is cut off within a table either: what names a value is above it.
    page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    cut = """() => [...document.querySelectorAll(".scroll")].filter((each) => each.scrollWidth > each.clientWidth + 1)
        .map((each) => each.getAttribute("aria-label") || each.getAttribute("aria-labelledby"))"""
    assert page.evaluate(cut) == []
    small = """() => [...document.querySelectorAll("button, select, input[type=range], summary")]
        .filter((element) => element.offsetHeight && element.offsetHeight < 24).length"""
    assert page.evaluate(small) == 0  # WCAG 2.2: targets of 24 px
    assert page.evaluate("document.querySelector('.curves').layout.dragmode") is False


def test_dark_is_what_the_system_prefers_until_the_menu_says_otherwise(visit):
    dark, light = ["rgb(18, 21, 27)", "rgb(231, 234, 240)"], ["rgb(246, 247, 249)", "rgb(27, 31, 39)"]

    def state(page):
        return page.evaluate(
            "[getComputedStyle(document.body).backgroundColor,"
            " getComputedStyle(document.querySelector('.curves .xtick text')).fill]"
        )

    page = visit(color_scheme="dark")
    assert state(page) == dark
    page.locator("#theme").focus()
    for key, ground in (("ArrowDown", light), ("ArrowUp", dark), ("End", dark)):
        page.keyboard.press(key)
        assert state(page) == ground, key
    page.emulate_media(color_scheme="light")
    assert state(page) == dark  # as chosen
    page.keyboard.press("Home")
    assert state(page) == light


def pixels(page, name):
    """What is seen of a picture, filter included."""
    script = """async (image) => {
        await image.decode();
        const [width, height] = [image.naturalWidth, image.naturalHeight];
        const copy = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
        copy.filter = getComputedStyle(image).filter;
        copy.drawImage(image, 0, 0);
        return [...copy.getImageData(0, 0, width, height).data];
    }"""
    return np.array(page.locator(f"img.{name}:visible").evaluate(script)).reshape(6, 6, 4)[..., :3] / 255


def test_the_viewer_shows_the_images_and_amplifies_their_difference(visit):
    page = visit()
    pairs, half = make_pairs(), 0.5 / 255 + 1e-6
    for index in (1, 2, 0):
        page.locator("#next-example").press("Enter")
        assert page.locator("#example-number").inner_text() == f"{index + 1} of 3"
        clean, adversarial = (each[index].transpose(1, 2, 0) for each in (pairs.clean, pairs.adversarial))
        assert np.abs(pixels(page, "image") - clean).max() < half
        assert np.abs(pixels(page, "attack") - adversarial).max() < half
        difference = adversarial - clean
        page.locator("#amplification").press("End")
        strength = 0.5 / np.abs(difference).max()
        assert np.abs(pixels(page, "difference") - (0.5 + strength * difference)).max() < 2 * half
        page.locator("#amplification").press("Home")
        assert np.abs(pixels(page, "difference") - (0.5 + difference)).max() < 2 * half
        assert page.locator("#amplification").get_attribute("aria-valuetext") == "\u00d7 1.0"
    assert page.locator("figcaption:visible span").first.inner_text() == f"{CLASSES[0]}: right"
    page.locator("#example-run").select_option(label="exact")
    assert page.locator("#example-number").inner_text() == "1 of 2"


def test_classes_are_sorted_by_the_score_chosen(visit):
    page = visit()
    chart = page.locator(".classes").first
    rows = {row["class"]: row["clean_accuracy"] for row in RUNS[0].report.per_class}
    for box in page.locator(".show").all()[1:]:
        box.uncheck()
    chart.locator(".score").select_option("clean accuracy")
    drawn = chart.locator(".by-class")
    shown = drawn.evaluate("(each) => each._fullLayout.yaxis._categories")
    assert [rows[name] for name in shown] == sorted(rows.values())
    told = drawn.evaluate("(each) => [each.data[0].x, each.data[0].y, each.layout.xaxis.title.text]")
    assert dict(zip(told[1], told[0], strict=True)) == pytest.approx({name: 100 * rows[name] for name in rows})
    assert told[2] == "clean accuracy (%)"
    chart.locator(".order").select_option("as in the report")
    assert drawn.evaluate("(each) => each._fullLayout.yaxis._categories") == list(rows)


def test_of_masks_each_score_has_its_slider_and_overlays_are_legible_on_a_phone(visit, masks_page_file):
    page = visit(masks_page_file, viewport={"width": 390, "height": 800}, is_mobile=True, has_touch=True)
    assert page.locator(".group h3").all_inner_texts() == ["Mean IoU, Linf", "Pixel accuracy, Linf"]
    page.locator("#eps-1").press("End")
    page.locator("#eps-0").press("Home")
    cells = [page.locator(".group").nth(at).locator("td.accuracy").first.inner_text() for at in range(2)]
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    strip = page.locator("img.strip").bounding_box()
    assert strip["width"] > 600, "its titles are smaller than print"
    assert page.locator(".scroll:has(> img.strip)").get_attribute("tabindex") == "0"
    scores = page.locator(".scores tbody tr").first.locator("td").all_inner_texts()
    assert cells[0] == scores[1].split("\n")[0] and cells[1] == scores[5].split("\n")[0]
