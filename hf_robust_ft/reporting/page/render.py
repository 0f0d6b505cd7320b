"""One page of several runs that needs nothing but itself: charts, slider, training, classes, examples, protocol."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_robust_ft.attacks.threat_model import format_eps, readable_eps
from hf_robust_ft.evaluation.confidence_intervals import interval_method
from hf_robust_ft.evaluation.protocols import PROTOCOLS
from hf_robust_ft.evaluation.reliability import is_reliable, reliability_sentence
from hf_robust_ft.reporting.comparability import Setting
from hf_robust_ft.reporting.consistency import check_consistent
from hf_robust_ft.reporting.example_pairs import ExamplePairs, drawable
from hf_robust_ft.reporting.page.assets import read_asset, render_template
from hf_robust_ft.reporting.page.protocol_table import protocol_rows
from hf_robust_ft.reporting.page.runs import Run
from hf_robust_ft.reporting.reach import LEAST, reach_of, reach_sentence
from hf_robust_ft.reporting.verdict import verdict

SCRIPTS = ("robustness.js", "charts.js", "page.js", "examples.js")
COLOURS = 6  # --run-0 ... of page.css
DASHES = (("solid", ""), ("dash", "6 4"), ("dot", "2 3"))  # Plotly's names, and as lengths
MOST_EXAMPLES = 12  # of a run: each takes up to 0.4 MB at 224 px
LEAST_TICKS = 100  # of a slider

# Beside norm and eps, what runs must share to be compared, and how a notice calls it.
COMPARED = {
    "protocol": "protocol",
    "attack": "attack",
    "dataset": "dataset",
    "split": "split",
    "images": "number of images",
}


def render_page(runs: Sequence[Run], title: str = "Robustness report") -> str:
    """The page as HTML.

    Args:
        runs: as `read_runs` gives them.
        title: what the page is called.

    Raises:
        ImportError: Plotly, which draws the charts, is not installed.
        ValueError: a report whose figures do not follow from its own curve.
    """
    plotly = plotly_source()
    shown = [_describe(run, index) for index, run in enumerate(runs)]
    groups = [_norm_group(norm, shown, index) for index, norm in enumerate(_distinct(run["norm"] for run in shown))]
    class_groups = _class_groups(shown)
    examples = [_examples_of(run["name"], run["examples"]) for run in shown if run["examples"]]
    return render_template(
        "page.html",
        [plotly, *map(read_asset, SCRIPTS)],
        title=title,
        runs=shown,
        groups=groups,
        class_groups=class_groups,
        examples=examples,
        notices=_notices(shown),
        protocol_rows=protocol_rows([run["report"] for run in shown]),
        protocol_texts=[PROTOCOLS[name].description for name in _distinct(run["report"].protocol for run in shown)],
        data={
            "runs": [run["data"] for run in shown],
            "groups": groups,
            "classGroups": class_groups,
            "examples": examples,
        },
    )


def plotly_source() -> str:
    """Plotly.js, as the Python package plotly ships it (4.8 MB; the package holds no smaller bundle).

    Raises:
        ImportError: it is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise ImportError(
            "The page's charts need Plotly, which is not installed: pip install 'hf_robust_ft[report]'."
        ) from None
    return get_plotlyjs()


def _describe(run: Run, index: int) -> dict[str, Any]:
    """A run as the template shows it, with the `data` its scripts work on."""
    report, setting = run.report, Setting.of(run.report)
    try:
        check_consistent(report)
    except ValueError as error:
        raise ValueError(f"{run.name} cannot be shown, for its report is damaged. {error} Measure it again.") from None
    dash, dash_array = DASHES[index // COLOURS % len(DASHES)]
    facts = report.metadata
    comparable = {name: getattr(setting, name) for name in ("norm", *COMPARED)}
    data = {
        "name": run.name,
        "colour": index % COLOURS,
        "dash": dash,
        "setting": comparable,
        "epsLabel": setting.eps,
        "images": report.num_samples,
        "doubtful": not is_reliable(report),
        "epsilons": report.epsilons,
        "accuracies": report.accuracies,
        "bands": report.confidence_intervals.get("accuracies") or [],
        "timeline": vars(run.timeline),
        "perClass": report.per_class,
    }
    if report.protocol == "exact":
        data["smallest"] = sorted(eps for eps in report.smallest_epsilons if eps is not None)
    reach = reach_of(facts.get("training"))
    subject = facts.get("model_name") or facts.get("base_model_text") or facts.get("base_model")
    return {
        "name": run.name,
        "colour": index % COLOURS,
        "dash_array": dash_array,
        "norm": setting.norm,
        "setting": setting,
        "report": report,
        "subtitle": subject if subject != run.name else None,
        "epsilon_labels": [format_eps(eps) for eps in report.epsilons],
        "timeline": run.timeline,
        "timeline_rows": _timeline_rows(run),
        "examples": run.examples,
        "strips": [{"alt": f"{run.name}: {strip.stem}", "uri": _picture(strip)} for strip in run.strips],
        "notes": facts.get("notes") or [],
        "reach": None if reach is None else {"sentence": reach_sentence(reach), "passed": reach >= LEAST},
        "verdict": verdict(report),
        "reliability": {**report.reliability, "sentence": reliability_sentence(report)},
        "interval_method": interval_method(report.confidence_intervals),
        "data": data,
    }


def _norm_group(norm: str, runs: Sequence[dict], index: int) -> dict[str, Any]:
    """The runs of one norm, which share an axis: budgets of different norms have no common scale."""
    members = [position for position, run in enumerate(runs) if run["norm"] == norm]
    largest = max(runs[member]["report"].epsilons[-1] for member in members)
    common = min(runs[member]["report"].epsilons[-1] for member in members)
    unit, unit_name = (1 / 255, " (1/255)") if norm == "Linf" else (1.0, "")
    whole = round(largest / unit)
    is_whole = norm == "Linf" and whole > 0 and abs(largest / unit - whole) < 1e-6
    per_unit = next((count for count in (1, 2, 5, 10, 20, 50, 100) if count * whole >= LEAST_TICKS), 1)
    ticks = whole * per_unit if is_whole else 2 * LEAST_TICKS
    return {
        "index": index,
        "norm": norm,
        "unit": unit,
        "unitName": unit_name,
        "runs": members,
        "maxEps": largest,
        "ticks": ticks,
        "start": round(ticks * common / largest) if largest else 0,
        "timelines": [member for member in members if runs[member]["timeline"]],
    }


def _class_groups(runs: Sequence[dict]) -> list[dict[str, Any]]:
    """Runs of one setting and the same classes share a chart: it is read as a comparison."""
    groups: dict[tuple, list[int]] = {}
    for index, run in enumerate(runs):
        if run["report"].per_class:
            classes = tuple(sorted(row["class"] for row in run["report"].per_class))
            groups.setdefault((run["setting"], classes), []).append(index)
    return [{"runs": members, "setting": str(setting)} for (setting, _), members in groups.items()]


def _examples_of(name: str, pairs: ExamplePairs) -> dict[str, Any]:
    """The examples as the viewer takes them: image and difference in 8 bits, the latter scaled by its largest value."""
    images = []
    shown = (each[:MOST_EXAMPLES] for each in (pairs.clean, pairs.adversarial, pairs.captions()))
    for clean, adversarial, (before, after) in zip(*shown, strict=True):
        largest_of_all = float(np.abs(adversarial - clean).max())  # of any channel, drawn or not
        clean, adversarial = drawable(clean), drawable(adversarial)
        difference = adversarial - clean
        largest = float(np.abs(difference).max())
        scaled = np.rint(difference * (127 / largest if largest > 0 else 0)).astype(np.int8)
        images.append(
            {
                "height": clean.shape[1],
                "width": clean.shape[2],
                "clean": _values(np.rint(255 * clean.clip(0, 1)).astype(np.uint8)),
                "difference": _values(scaled),
                "largest": largest,
                "largestLabel": readable_eps(largest_of_all),
                "before": before,
                "after": after,
            }
        )
    left_out = len(pairs.clean) - len(images)
    return {"name": name, "images": images, "left_out": left_out}


def _values(image: np.ndarray) -> str:
    """(C, H, W) as base64 of H x W x 3 bytes; grey as three equal channels."""
    return base64.b64encode(np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0).tobytes()).decode()


def _picture(file: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"


def _timeline_rows(run: Run) -> list[dict[str, str]]:
    columns = {
        name: {f"{epoch:g}": value for epoch, value in getattr(run.timeline, name)}
        for name in ("eps", "clean", "adversarial")
    }
    epochs = sorted({*columns["eps"], *columns["clean"], *columns["adversarial"]} - {"0"}, key=float)
    shown = {"eps": lambda eps: readable_eps(eps, run.report.threat_model["norm"])}
    return [
        {"epoch": epoch}
        | {
            name: shown.get(name, lambda share: f"{share:.1%}")(values[epoch]) if epoch in values else ""
            for name, values in columns.items()
        }
        for epoch in epochs
    ]


def _notices(runs: Sequence[dict]) -> list[str]:
    """What keeps the runs of the page apart, said at its top."""
    notices = []
    norms = _distinct(run["norm"] for run in runs)
    if len(norms) > 1:
        notices.append(
            f"These runs were measured under different norms ({', '.join(norms)}). Their budgets have no common scale, "
            "so each norm has a chart of its own and nothing is compared across."
        )
    for norm in norms:
        budgets = _distinct(run["setting"].eps for run in runs if run["norm"] == norm)
        if len(budgets) > 1:
            notices.append(
                f"Under {norm} these runs were measured up to different eps ({', '.join(budgets)}): their adversarial "
                "accuracy and expected robustness in the first table are not of the same budget. Below, the slider "
                "compares them at any eps that both were measured at."
            )
    others = {name: _distinct(getattr(run["setting"], name) for run in runs) for name in COMPARED}
    apart = [f"{COMPARED[name]} ({', '.join(found)})" for name, found in others.items() if len(found) > 1]
    if apart:
        notices.append(f"These runs differ in {', '.join(apart)}: no difference is told across them.")
    return notices


def _distinct(values: Any) -> list[str]:
    return list(dict.fromkeys(values))
