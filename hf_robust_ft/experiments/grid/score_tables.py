"""The tables of scores in the form of the paper's Tables 1, 2, 7 and 8, with its figures beside ours."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hf_robust_ft.experiments.grid.markdown import NONE, SHORT, of_score, percent, points, table
from hf_robust_ft.experiments.grid.settings import schedule_epochs
from hf_robust_ft.experiments.paper.numbers import Scores

MAIN_SETTINGS = ("standard", "fix", "hinge")


def score_tables(summary: Mapping[str, Any]) -> list[str]:
    """One table for each eps; where the paper has figures, two: its Table 1 or 2, then its Table 8.

    The second holds the other settings beside fix and hinge.
    """
    parts = []
    for eps in summary["protocols"]:
        cells = [each for each in summary["cells"] if each["eps"] == eps and not schedule_epochs(each["setting"])]
        groups = [cells]
        if any(each["paper"] for each in cells):
            main = [each for each in cells if each["setting"] in MAIN_SETTINGS]
            others = [each for each in cells if each["setting"] != "standard"]
            groups = [main, others] if any(each["setting"] not in MAIN_SETTINGS for each in cells) else [main]
        for chosen in filter(None, groups):
            settings = ", ".join(dict.fromkeys(each["setting"] for each in chosen))
            title = f"## {summary['norm']} {eps}: {settings}{of_score(summary)}"
            parts += [title, _score_table(chosen), _caption(summary, eps, chosen)]
    return parts


def _score_table(cells: Sequence[Mapping[str, Any]]) -> str:
    """Rows backbone x setting, columns dataset x score."""
    datasets = list(dict.fromkeys(sorted(each["dataset"] for each in cells)))
    found = {(each["model"], each["setting"], each["dataset"]): each for each in cells}
    rows: list[list[str]] = []
    for model, setting in dict.fromkeys((each["model"], each["setting"]) for each in cells):
        in_row = [found.get((model, setting, dataset)) for dataset in datasets]
        rows += _rows_of_figures([model, setting], in_row)
    scores = [f"{dataset} {short}" for dataset in datasets for short in SHORT.values()]
    return table(["backbone", "setting", "seeds", "", *scores], rows, text_columns=4)


def ablation_tables(summary: Mapping[str, Any]) -> list[str]:
    """The paper's Table 7 for each backbone and dataset: rows (T1, T2), columns eps x score."""
    cells = [each for each in summary["cells"] if schedule_epochs(each["setting"])]
    parts = []
    for model, dataset in dict.fromkeys((each["model"], each["dataset"]) for each in cells):
        chosen = [each for each in cells if (each["model"], each["dataset"]) == (model, dataset)]
        epsilons = [eps for eps in summary["protocols"] if any(each["eps"] == eps for each in chosen)]
        found = {(each["setting"], each["eps"]): each for each in chosen}
        rows = []
        for setting in sorted({each["setting"] for each in chosen}, key=schedule_epochs):
            start, end = schedule_epochs(setting)
            rows += _rows_of_figures([f"{start:g}", f"{end:g}"], [found.get((setting, eps)) for eps in epsilons])
        scores = [f"{eps} {short}" for eps in epsilons for short in SHORT.values()]
        parts += [
            f"## T1 and T2, {model} on {dataset}{of_score(summary)}",
            table(["T1", "T2", "seeds", "", *scores], rows, text_columns=4),
            "T1 and T2 in epochs of 50, whatever the length of training. "
            + " ".join(_caption(summary, eps, [each for each in chosen if each["eps"] == eps]) for eps in epsilons),
        ]
    return parts


def _rows_of_figures(labels: list[str], cells: Sequence[Mapping[str, Any] | None]) -> list[list[str]]:
    """Ours, of converged ones those after the first steps too; the paper's where it has one, and the difference."""
    seeds = sorted({len(each["seeds"]) for each in cells if each})
    figures: dict[str, list[str]] = {"ours": [], "first": [], "paper": [], "difference": []}
    for each, score in itertools.product(cells, Scores._fields):
        figures["ours"].append(_mean_and_sd(each, score))
        figures["first"].append(_mean_and_sd(each and each["first"], score))
        figures["paper"].append(percent(each["paper"][score]) if each and each["paper"] else NONE)
        figures["difference"].append(points(each["difference"][score]) if each and each["difference"] else NONE)
    names = {kind: kind for kind in figures}
    if first := next((each["first"] for each in cells if each and each["first"]), None):
        names |= {"ours": "converged", "first": f"{first['steps']} steps"}
    count = " to ".join(map(str, dict.fromkeys([seeds[0], seeds[-1]])))
    shown = [kind for kind in figures if kind == "ours" or any(each and each[kind] for each in cells)]
    return [[*labels, count if kind == "ours" else "", names[kind], *figures[kind]] for kind in shown]


def _caption(summary: Mapping[str, Any], eps: str, cells: Iterable[Mapping[str, Any]]) -> str:
    """How it was measured, and whether the paper's figures may be held against it."""
    caption = f"Measured at {summary['norm']} {eps} on the {summary['split']} split under the protocol: "
    caption += f"{summary['protocols'][eps]}."
    cells = list(cells)
    if unsettled := [each for each in cells if each["first"] and each["settled"] < len(each["seeds"])]:
        listed = ", ".join(_unsettled(each) for each in unsettled)
        caption += f" Not settled within that many steps, so too high: {listed}."
    cells = [each for each in cells if each["paper"]]
    if not cells:
        return caption
    caption += " The paper's figures (arXiv 2509.23325): one run, its protocol APGD-10 (ce) at every 1/255 on the test "
    same = summary["papers_protocol"][eps]
    caption += "split, the same as ours." if same else "split; ours is another, so no difference is taken."
    changed = dict.fromkeys(what for each in cells for what in each["trained_otherwise"])
    return caption + (f" But some of ours were trained otherwise: {', '.join(changed)}." if changed else "")


def _unsettled(cell: Mapping[str, Any]) -> str:
    runs = len(cell["seeds"])
    return f"{cell['model']} {cell['setting']} on {cell['dataset']} ({runs - cell['settled']} of {runs} runs)"


def _mean_and_sd(cell: Mapping[str, Any] | None, score: str) -> str:
    if cell is None:
        return NONE
    spread = f" ± {percent(cell['sd'][score])}" if cell["sd"] else ""
    return percent(cell["mean"][score]) + spread
