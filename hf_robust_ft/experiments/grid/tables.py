"""A grid's figures as Markdown tables in the form of arXiv 2509.23325, with the paper's own beside them."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_robust_ft.experiments.grid.markdown import NONE, SHORT, of_score, percent, points, table
from hf_robust_ft.experiments.grid.plots import plot_grid
from hf_robust_ft.experiments.grid.results import MeasuredCell
from hf_robust_ft.experiments.grid.score_tables import ablation_tables, score_tables
from hf_robust_ft.experiments.grid.settings import table_name
from hf_robust_ft.experiments.grid.summary import ALL_EPS, REFERENCES, summarise
from hf_robust_ft.experiments.paper.numbers import Scores

TABLES_NAME = "tables.md"
RESULTS_NAME = "results.json"


def write_tables(results: Sequence[MeasuredCell], folder: str | Path, failed: Mapping[str, str] | None = None) -> str:
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
        by_score = [summary, *summary.get("others", ())]
        parts += [part for each in by_score for part in (*score_tables(each), *ablation_tables(each))]
        for each in by_score:
            parts += [*_win_table(each), *_t_test_tables(each), *_mean_tables(each)]
        parts += _cost_table(summary)
    if pictures:
        parts += ["## Pictures", *(f"![{_alt_text(name)}]({name})" for name in pictures)]
    return "\n\n".join(parts) + "\n"


def _introduction(summary: Mapping[str, Any]) -> list[str]:
    images = ", ".join(f"{dataset} {count}" for dataset, count in summary["images"].items())
    lines = [
        f"{_scores_told(summary)} in percent, on held-out images, as mean ± standard deviation over seeds where there "
        f"are several; differences in points. Images: {images}."
    ]
    if told := summary.get("reliability"):
        lines.append(told)
    if summary["missing"]:
        lines.append("Cells that have no result (every comparison uses what both sides have):")
        lines.append(_missing(summary["missing"]))
    return lines


def _scores_told(summary: Mapping[str, Any]) -> str:
    others = [each["score"] for each in summary.get("others", ())]
    return " and ".join([summary["score"][0].upper() + summary["score"][1:], *others]) if others else "All accuracies"


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
        f"## Wins{of_score(summary)}",
        table(["setting", "over", "eps", "configurations", *SHORT.values()], rows, text_columns=3),
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
            head = ["setting", "minus", "eps", *labels, "pairs", *SHORT.values()]
            parts += [f"### Pairs are {unit}", table(head, rows, text_columns=3 + len(labels))]
        if untested := sum(each["pairs_are"] == unit for each in alone):
            plural = "s" if untested > 1 else ""
            parts.append(f"Not tested: {untested} comparison{plural} of one {unit.removesuffix('s')} only.")
    if not parts:
        return []
    note = (
        "Mean difference in points (t, two-sided p); p is not corrected for the number of tests. Configurations that "
        "share a backbone or a dataset are not independent, and all seeds share the held-out images."
    )
    return [f"## Paired t-tests{of_score(summary)}", note, *parts]


def _tested(test: Mapping[str, Any]) -> str:
    how = test["note"] or f"t = {test['t']:.2f}, p = {test['p']:.2g}"
    return f"{points(test['difference'])} ({how})"


def _mean_tables(summary: Mapping[str, Any]) -> list[str]:
    parts = []
    for eps in dict.fromkeys(each["eps"] for each in summary["means"]):
        rows = [
            [
                each["group"], each["setting"], str(each["configurations"]),
                *(percent(each["mean"][score]) for score in Scores._fields),
                str(each["pairs"]) if each["difference"] else NONE,
                *(points(each["difference"][score]) if each["difference"] else NONE for score in Scores._fields),
            ]
            for each in summary["means"]
            if each["eps"] == eps
        ]  # fmt: skip
        if all(each["configurations"] == 1 for each in summary["means"] if each["eps"] == eps):
            continue  # the table of scores has them
        head = ["over", "setting", "configurations", *SHORT.values()]
        head += ["pairs", *(f"{short} minus {REFERENCES[0]}" for short in SHORT.values())]
        where = "all eps" if eps == ALL_EPS else f"{summary['norm']} {eps}"
        parts += [f"### {where}", table(head, rows, text_columns=2)]
    note = (
        "Means over configurations, over all and by backbone and dataset where there are several. The difference is "
        "taken over the configurations that have both settings."
    )
    return [f"## Means{of_score(summary)}", note, *parts] if parts else []


def _cost_table(summary: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            each["model"], each["dataset"], each["setting"], str(each["runs"]),
            *(f"{each['passes'].get(kind, 0):,.0f}" for kind in ("training", "attack", "forward")),
            NONE if each["attack_share_of_hinge"] is None else f"{100 * each['attack_share_of_hinge']:.1f}",
            f"{each['forwards']:,.0f}",
            NONE if each["fix_costs_times"] is None else f"{each['fix_costs_times']:.2f}",
            *(f"{each['seconds'].get(kind, 0):,.1f}" for kind in ("training", "evaluation")),
        ]
        for each in summary["costs"]
    ]  # fmt: skip
    head = ["backbone", "dataset", "setting", "runs", "training passes", "attack passes", "forward passes"]
    head += ["attack, % of hinge's", "all, in forwards", "fix over it", "training (s)", "evaluation (s)"]
    note = (
        "Means of a run. Passes are images that went through the model with a gradient of the weights (training), with "
        "a gradient of the pixels (attack), or with none (forward), without the evaluation; at a low resolution an "
        "image counts by its share of the pixels. All together as forward passes: a gradient of the pixels costs 2, "
        "one of the weights 3; what fix, the plain loop of as many epochs, cost over that. Seconds are wall time."
    )
    return ["## Cost", table(head, rows, text_columns=3), note]


def _alt_text(name: str) -> str:
    return name.removesuffix(".png").replace("_", " ")
