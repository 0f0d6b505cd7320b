"""One page of several runs that needs nothing but itself: charts, slider, training, classes, examples, protocol."""

import base64
from collections.abc import Iterable, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from hf_robust_ft.attacks.threat_model import format_eps, readable_eps
from hf_robust_ft.evaluation.confidence_intervals import interval_method
from hf_robust_ft.evaluation.reliability import OK, reliability_sentence
from hf_robust_ft.reporting.artifacts import DRAWERS
from hf_robust_ft.reporting.example_pairs import ExamplePairs, drawable
from hf_robust_ft.reporting.measures import MEASURES, Measure
from hf_robust_ft.reporting.page import figures
from hf_robust_ft.reporting.page.assets import read_asset, render_template
from hf_robust_ft.reporting.page.protocol_table import protocol_rows
from hf_robust_ft.reporting.page.runs import Run
from hf_robust_ft.reporting.page.slider import slider_ticks, what_keeps_apart
from hf_robust_ft.reporting.page.tasks import PAGE_TASKS
from hf_robust_ft.reporting.reach import LEAST, reach_of, reach_sentence
from hf_robust_ft.reporting.report_files import Report

OTHER_WORDS = {"images": "number of images", "image_set": "the images themselves"}  # than the fields of `Setting`
MOST_EXAMPLES = 12  # of a run: each takes up to 0.4 MB at 224 px


def render_page(runs: Sequence[Run], title: str = "Robustness report") -> str:
    """The page as HTML.

    Args:
        runs: as `read_runs` gives them.
        title: what the page is called.

    Raises:
        ValueError: a report whose figures do not follow from its own curve, or reports of different tasks.
    """
    kinds = {type(run.report): run.name for run in runs}
    if len(kinds) > 1:
        names = " and ".join(kinds.values())
        raise ValueError(f"A page shows runs of one task, and {names} are of different ones: make a page of each.")
    task, measures = PAGE_TASKS[next(iter(kinds))], MEASURES[next(iter(kinds))]
    shown = [_describe(run, index) for index, run in enumerate(runs)]
    norms = _distinct(run["setting"].norm for run in shown)
    return render_template(
        "page.html",
        [read_asset("page.js")],
        [figures.get_plotlyjs()],
        title=title,
        task=task,
        measures=measures,
        runs=shown,
        findings=_findings(shown),
        groups=[_group(norm, measure, shown) for measure in measures for norm in norms],
        trainings=[_training(norm, measures[0], shown) for norm in norms],
        class_groups=_class_groups(shown),
        examples=[_examples_of(run.name, run.examples) for run in runs if run.examples],
        notices=_notices(shown),
        protocol_rows=protocol_rows([run.report for run in runs], task.setting, task.attack_facts),
        protocol_texts=[task.protocols[name] for name in _distinct(run.report.protocol for run in runs)],
    )


def _describe(run: Run, index: int) -> figures.Shown:
    """A run as the template and the figures take it."""
    report, task, drawers = run.report, PAGE_TASKS[type(run.report)], DRAWERS[type(run.report)]
    try:
        drawers.check(report)
    except ValueError as error:
        raise ValueError(f"{run.name} cannot be shown, for its report is damaged. {error} Measure it again.") from None
    facts = report.metadata
    reach = reach_of(facts.get("training"))
    subject = facts.get("model_name") or facts.get("base_model_text") or facts.get("base_model")
    return {
        **vars(run),
        "style": figures.style_of(index),
        "setting": task.setting(report),
        "subtitle": subject if subject != run.name else None,
        "pictures": [{"alt": f"{run.name}: {strip.stem}", "uri": _png_uri(strip.read_bytes())} for strip in run.strips],
        "notes": facts.get("notes") or [],
        "reach": None if reach is None else {"sentence": reach_sentence(reach), "passed": reach >= LEAST},
        "objective_doubt": task.doubt(report),
        "verdict": drawers.verdict(report),
        "reliability": {**report.reliability, "sentence": reliability_sentence(report)},
        "interval_method": interval_method(report.confidence_intervals),
        "curve_table": _curve_table(report),
        "timeline_table": _timeline_table(run),
        "class_table": _class_table(report),
    }


def _findings(shown: Sequence[figures.Shown]) -> list[dict[str, Any]]:
    """The verdicts and how far they hold, each sentence once with the runs it is true of."""
    told: dict[tuple[str, bool], list[str]] = {}
    for run in shown:
        if run["verdict"] and not run["verdict"].is_robust:
            told.setdefault((run["verdict"].sentence, False), []).append(run["name"])
        reliability = run["reliability"]
        told.setdefault((reliability["sentence"], reliability["verdict"] == OK), []).append(run["name"])
    return [{"runs": names, "sentence": sentence, "passed": passed} for (sentence, passed), names in told.items()]


def _training(norm: str, measure: Measure, shown: Sequence[figures.Shown]) -> dict[str, Any]:
    trained = [run for run in shown if run["setting"].norm == norm and run["timeline"]]
    return {"norm": norm, "runs": trained, "figure": figures.timeline(norm, trained, measure)}


def _group(norm: str, measure: Measure, shown: Sequence[figures.Shown]) -> dict[str, Any]:
    """A measure of the runs of one norm, which share an axis: budgets of different norms have no common scale."""
    runs = [run for run in shown if run["setting"].norm == norm]
    reports, unit = [run["report"] for run in runs], figures.unit_of(norm)[0]
    setting_of = PAGE_TASKS[type(reports[0])].setting
    ticks, common = slider_ticks(reports, unit, measure), min(report.epsilons[-1] for report in reports) / unit
    return {
        "norm": norm,
        "measure": measure.name,
        "runs": runs,
        "curves": figures.curves(norm, runs, measure),
        "slider": {
            "ticks": ticks,
            "apart": [[what_keeps_apart(one, other, unit, setting_of) for other in reports] for one in reports],
        },
        "start": min(range(len(ticks)), key=lambda index: abs(ticks[index]["x"] - common)),
    }


def _class_groups(shown: Sequence[figures.Shown]) -> list[dict[str, Any]]:
    """Runs of one setting and the same classes share a chart: it is read as a comparison."""
    groups: dict[tuple, list[figures.Shown]] = {}
    for run in shown:
        if run["report"].per_class:
            classes = tuple(sorted(row["class"] for row in run["report"].per_class))
            groups.setdefault((run["setting"], classes), []).append(run)
    found = []
    for (setting, _), runs in groups.items():
        task = PAGE_TASKS[type(runs[0]["report"])]
        figure, menus = figures.by_class(runs, task.class_scores, task.counted)
        found.append({"setting": setting, "runs": runs, "figure": figure, "menus": menus})
    return found


def _examples_of(name: str, pairs: ExamplePairs) -> dict[str, Any]:
    """The examples as pictures; the difference about a medium grey, as strong as its range allows."""
    examples = []
    shown = (each[:MOST_EXAMPLES] for each in (pairs.clean, pairs.adversarial, pairs.captions()))
    for clean, adversarial, (before, after) in zip(*shown, strict=True):
        told = f"largest {readable_eps(float(np.abs(adversarial - clean).max()))}"  # of any channel, drawn or not
        clean, adversarial = drawable(clean), drawable(adversarial)
        largest = float(np.abs(adversarial - clean).max()) or 0.5
        difference = 0.5 + 0.5 / largest * (adversarial - clean)
        pictures = (("Image", before, clean), ("Under attack", after, adversarial), ("Difference", told, difference))
        examples.append(
            {
                "largest": largest,
                "is_small": clean.shape[-1] < 128,
                "pictures": [
                    {"name": title, "caption": caption, "uri": _picture(image)} for title, caption, image in pictures
                ],
            }
        )
    return {"name": name, "examples": examples, "left_out": len(pairs.clean) - len(examples)}


def _picture(image: np.ndarray) -> str:
    """(C, H, W) in [0, 1], of 1 or 3 channels, as a PNG."""
    pixels = np.broadcast_to(np.rint(255 * image.clip(0, 1)).astype(np.uint8), (3, *image.shape[1:]))
    file = BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "png")
    return _png_uri(file.getvalue())


def _png_uri(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _curve_table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Headings and rows, as of the tables below."""
    heads, rows = ["eps"], [[format_eps(eps)] for eps in report.epsilons]
    for measure in MEASURES[type(report)]:
        bands = measure.intervals(report)
        heads += [measure.name, "95 % interval"] if bands else [measure.name]
        for row, eps, share in zip(rows, report.epsilons, getattr(report, measure.curve), strict=True):
            row.append(_percent(share))
            if eps in bands:
                low, high = bands[eps]
                row.append(f"{100 * low:.1f} to {100 * high:.1f}")
    return heads, rows


def _class_table(report: Report) -> tuple[list[str], list[list[str]]]:
    task = PAGE_TASKS[type(report)]
    scores, (key, counted) = list(task.class_scores.values())[::-1], task.counted
    rows = [[row["class"], str(row[key]), *(_percent(row[score]) for score in scores)] for row in report.per_class]
    return ["class", counted, "clean", "adversarial", "expected"], rows


def _timeline_table(run: Run) -> tuple[list[str], list[list[str]]]:
    norm = run.report.threat_model["norm"]
    told = {"eps": lambda eps: readable_eps(eps, norm), "clean": _percent, "adversarial": _percent}
    columns = {
        name: {f"{epoch:g}": tell(value) for epoch, value in getattr(run.timeline, name)} for name, tell in told.items()
    }
    epochs = sorted({epoch for column in columns.values() for epoch in column} - {"0"}, key=float)
    return ["epoch", *columns], [[epoch, *(column.get(epoch, "") for column in columns.values())] for epoch in epochs]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _notices(runs: Sequence[figures.Shown]) -> list[str]:
    """What keeps the runs of the page apart, said at its top."""
    notices = []
    norms = _distinct(run["setting"].norm for run in runs)
    if len(norms) > 1:
        notices.append(
            f"These runs were measured under different norms ({', '.join(norms)}). Their budgets have no common scale, "
            "so each norm has a chart of its own and nothing is compared across."
        )
    for norm in norms:
        budgets = _distinct(run["setting"].eps for run in runs if run["setting"].norm == norm)
        if len(budgets) > 1:
            notices.append(
                f"Under {norm} these runs were measured up to different eps ({', '.join(budgets)}): their adversarial "
                "accuracy and expected robustness in the first table are not of the same budget. Below, the slider "
                "compares them at any eps that both were measured at."
            )
    apart = []
    for name in sorted({*vars(runs[0]["setting"])} - {"norm", "eps", "grid"}):
        found = _distinct(getattr(run["setting"], name) for run in runs)
        if len(found) > 1:
            apart.append(f"{OTHER_WORDS.get(name, name)} ({', '.join(found)})")
    if apart:
        notices.append(f"These runs differ in {', '.join(apart)}: no difference is told across them.")
    return notices


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
