"""A grid's figures as Markdown tables in the form of arXiv 2509.23325, with the paper's own beside them."""

import dataclasses
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_robust_ft.grid.plots import plot_grid
from hf_robust_ft.grid.results import CellResult
from hf_robust_ft.grid.settings import schedule_epochs, table_name
from hf_robust_ft.grid.summary import ALL_EPS, REFERENCES, summarise
from hf_robust_ft.paper.numbers import Scores
from hf_robust_ft.plain_text import table_cell

TABLES_NAME = "tables.md"
RESULTS_NAME = "results.json"
MAIN_SETTINGS = ("standard", "fix", "hinge")
_NONE = "-"
_SHORT = {"clean": "clean", "adversarial": "adv.", "expected": "expected"}


def write_tables(results: Sequence[CellResult], folder: str | Path, failed: Mapping[str, str] | None = None) -> str:
    """Write `tables.md`, `results.json` (the same figures, not rounded) and the pictures into `folder`.

    Args:
        results: finished cells of one grid, in any order; the grid may be incomplete. The settings "sched" and
            "constant" are called "hinge" and "fix".
        failed: what went wrong, by the cell's name.

    Returns:
        The Markdown of `tables.md`.

    Raises:
        ValueError: neither results nor failures, or results that were not measured alike.
    """
    if not results and not failed:
        raise ValueError("There is no finished cell to tabulate. Run the grid first, or name the folder that holds it.")
    results = [dataclasses.replace(each, setting=table_name(each.setting)) for each in results]
    summary = summarise(results, failed or {})
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULTS_NAME).write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    pictures = plot_grid(results, folder)
    markdown = render_tables(summary, [picture.name for picture in pictures])
    (folder / TABLES_NAME).write_text(markdown, encoding="utf-8")
    return markdown


def render_tables(summary: Mapping[str, Any], pictures: Sequence[str] = ()) -> str:
    """The whole of `tables.md`, from what `results.json` holds.

    Args:
        summary: of `summarise`.
        pictures: file names in the same folder.
    """
    parts = ["# Results of the grid"]
    if summary["cells"]:
        parts += _introduction(summary)
    parts += _failures(summary)
    if summary["cells"]:
        parts += [*_score_tables(summary), *_ablation_tables(summary)]
        parts += [*_win_table(summary), *_t_test_tables(summary), *_mean_tables(summary), *_cost_table(summary)]
    if pictures:
        parts += ["## Pictures", *(f"![{_alt_text(name)}]({name})" for name in pictures)]
    return "\n\n".join(parts) + "\n"


def _introduction(summary: Mapping[str, Any]) -> list[str]:
    images = ", ".join(f"{dataset} {count}" for dataset, count in summary["images"].items())
    lines = [
        "All accuracies in percent, on held-out images, as mean ± standard deviation over seeds where there are "
        f"several; differences in points. Images: {images}."
    ]
    if summary["missing"]:
        lines.append("Cells that have no result (every comparison uses what both sides have):")
        lines.append(_missing(summary["missing"]))
    return lines


def _missing(cells: Sequence[Mapping[str, Any]]) -> str:
    """A line for each configuration, and in it the settings that lack the same seeds together."""
    lacking: dict[str, dict[str, list[str]]] = {}
    for each in cells:
        seeds = f"seed{'s' * (len(each['seeds']) > 1)} {', '.join(map(str, each['seeds']))}"
        by_seeds = lacking.setdefault(f"{each['model']} / {each['dataset']} / {each['eps']}", {})
        by_seeds.setdefault(seeds, []).append(each["setting"])
    return "\n".join(
        f"- {name}: " + "; ".join(", ".join(settings) + f" ({seeds})" for seeds, settings in by_seeds.items())
        for name, by_seeds in lacking.items()
    )


def _failures(summary: Mapping[str, Any]) -> list[str]:
    if not summary["failed"]:
        return []
    listed = "\n".join(f"- {name}: {' '.join(message.split())}" for name, message in summary["failed"].items())
    return ["## Failed cells", listed]


def _score_tables(summary: Mapping[str, Any]) -> list[str]:
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
            parts += [f"## {summary['norm']} {eps}: {settings}", _score_table(chosen), _caption(summary, eps, chosen)]
    return parts


def _score_table(cells: Sequence[Mapping[str, Any]]) -> str:
    """Rows backbone x setting, columns dataset x score."""
    datasets = list(dict.fromkeys(sorted(each["dataset"] for each in cells)))
    found = {(each["model"], each["setting"], each["dataset"]): each for each in cells}
    rows: list[list[str]] = []
    for model, setting in dict.fromkeys((each["model"], each["setting"]) for each in cells):
        in_row = [found.get((model, setting, dataset)) for dataset in datasets]
        rows += _rows_of_figures([model, setting], in_row)
    scores = [f"{dataset} {short}" for dataset in datasets for short in _SHORT.values()]
    return _table(["backbone", "setting", "seeds", "", *scores], rows, text_columns=4)


def _ablation_tables(summary: Mapping[str, Any]) -> list[str]:
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
        scores = [f"{eps} {short}" for eps in epsilons for short in _SHORT.values()]
        parts += [
            f"## T1 and T2, {model} on {dataset}",
            _table(["T1", "T2", "seeds", "", *scores], rows, text_columns=4),
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
        figures["paper"].append(_percent(each["paper"][score]) if each and each["paper"] else _NONE)
        figures["difference"].append(_points(each["difference"][score]) if each and each["difference"] else _NONE)
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


def _win_table(summary: Mapping[str, Any]) -> list[str]:
    if not summary["wins"]:
        return []
    rows = [
        [
            each["setting"] + label, each["reference"], each["eps"], str(each["pairs"]),
            *(_won(each[score]) for score in Scores._fields),
        ]
        for label, listed in (("", summary["wins"]), (" (the paper's table)", summary["papers_wins"]))
        for each in listed
    ]  # fmt: skip
    return [
        "## Wins",
        _table(["setting", "over", "eps", "configurations", *_SHORT.values()], rows, text_columns=3),
        "In how many configurations (backbone, dataset, eps) the setting's mean over seeds is higher than the other's, "
        "and in how many it is equal; of converged figures where there are any.",
    ]


def _won(count: Mapping[str, int]) -> str:
    ties = f", {count['ties']} equal" if count["ties"] else ""
    return f"{count['wins']} of {count['wins'] + count['ties'] + count['losses']}{ties}"


def _t_test_tables(summary: Mapping[str, Any]) -> list[str]:
    """Over configurations, and over the seeds of each configuration."""
    parts = []
    alone = [each for each in summary["t_tests"] if each["clean"]["n"] == 1]
    for unit, labels in (("configurations", ()), ("seeds", ("model", "dataset"))):
        rows = [
            [
                each["setting"], each["reference"], each["eps"], *(each[label] for label in labels),
                str(each["clean"]["n"]), *(_tested(each[score]) for score in Scores._fields),
            ]
            for each in summary["t_tests"]
            if each["pairs_are"] == unit and each not in alone
        ]  # fmt: skip
        if rows:
            head = ["setting", "minus", "eps", *labels, "pairs", *_SHORT.values()]
            parts += [f"### Pairs are {unit}", _table(head, rows, text_columns=3 + len(labels))]
        if untested := sum(each["pairs_are"] == unit for each in alone):
            plural = "s" if untested > 1 else ""
            parts.append(f"Not tested: {untested} comparison{plural} of one {unit.removesuffix('s')} only.")
    if not parts:
        return []
    note = (
        "Mean difference in points (t, two-sided p); p is not corrected for the number of tests. Configurations that "
        "share a backbone or a dataset are not independent, and all seeds share the held-out images."
    )
    return ["## Paired t-tests", note, *parts]


def _tested(test: Mapping[str, Any]) -> str:
    how = test["note"] or f"t = {test['t']:.2f}, p = {test['p']:.2g}"
    return f"{_points(test['difference'])} ({how})"


def _mean_tables(summary: Mapping[str, Any]) -> list[str]:
    parts = []
    for eps in dict.fromkeys(each["eps"] for each in summary["means"]):
        rows = [
            [
                each["group"], each["setting"], str(each["configurations"]),
                *(_percent(each["mean"][score]) for score in Scores._fields),
                str(each["pairs"]) if each["difference"] else _NONE,
                *(_points(each["difference"][score]) if each["difference"] else _NONE for score in Scores._fields),
            ]
            for each in summary["means"]
            if each["eps"] == eps
        ]  # fmt: skip
        if all(each["configurations"] == 1 for each in summary["means"] if each["eps"] == eps):
            continue  # the table of scores has them
        head = ["over", "setting", "configurations", *_SHORT.values()]
        head += ["pairs", *(f"{short} minus {REFERENCES[0]}" for short in _SHORT.values())]
        where = "all eps" if eps == ALL_EPS else f"{summary['norm']} {eps}"
        parts += [f"### {where}", _table(head, rows, text_columns=2)]
    note = (
        "Means over configurations, over all and by backbone and dataset where there are several. The difference is "
        "taken over the configurations that have both settings."
    )
    return ["## Means", note, *parts] if parts else []


def _cost_table(summary: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            each["model"], each["dataset"], each["setting"], str(each["runs"]),
            *(f"{each['passes'].get(kind, 0):,.0f}" for kind in ("training", "attack", "forward")),
            _NONE if each["attack_share_of_hinge"] is None else f"{100 * each['attack_share_of_hinge']:.1f}",
            *(f"{each['seconds'].get(kind, 0):,.1f}" for kind in ("training", "evaluation")),
        ]
        for each in summary["costs"]
    ]  # fmt: skip
    head = ["backbone", "dataset", "setting", "runs", "training passes", "attack passes", "forward passes"]
    head += ["attack, % of hinge's", "training (s)", "evaluation (s)"]
    note = (
        "Means of a run. Passes are images that went through the model with a gradient of the weights (training), with "
        "a gradient of the pixels (attack), or with none (forward), without the evaluation. Seconds are wall time."
    )
    return ["## Cost", _table(head, rows, text_columns=3), note]


def _mean_and_sd(cell: Mapping[str, Any] | None, score: str) -> str:
    if cell is None:
        return _NONE
    spread = f" ± {_percent(cell['sd'][score])}" if cell["sd"] else ""
    return _percent(cell["mean"][score]) + spread


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _points(difference: float) -> str:
    return f"{100 * difference:+.2f}"


def _alt_text(name: str) -> str:
    return name.removesuffix(".png").replace("_", " ")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int) -> str:
    """A Markdown table whose first columns hold text and whose others hold numbers."""
    rule = [":---" if column < text_columns else "---:" for column in range(len(head))]
    return "\n".join(f"| {' | '.join(map(table_cell, row))} |" for row in (head, rule, *rows))
