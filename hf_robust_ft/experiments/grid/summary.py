"""All figures of a grid in one JSON-able record: what `results.json` holds and the tables are rendered from."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hf_robust_ft.attacks.threat_model import format_eps
from hf_robust_ft.evaluation.reliability import count_reliable
from hf_robust_ft.experiments.grid.comparison import (
    Configuration,
    ScoreTable,
    configuration_of,
    count_wins,
    eps_of,
    mean_scores,
    split_of,
    t_test_over_configurations,
    t_test_over_seeds,
)
from hf_robust_ft.experiments.grid.measures import ACCURACY, MEASURES
from hf_robust_ft.experiments.grid.paper_comparison import is_measured_as_paper, paper_figure, trained_otherwise
from hf_robust_ft.experiments.grid.results import MeasuredCell
from hf_robust_ft.experiments.grid.settings import schedule_epochs
from hf_robust_ft.experiments.grid.training_cost import in_forwards
from hf_robust_ft.experiments.paper.numbers import Scores

REFERENCES = ("fix", "hinge")
ALL_EPS = "all"


def summarise(results: Sequence[MeasuredCell], failed: Mapping[str, str]) -> dict[str, Any]:
    """Count, average and compare. Scores are shares in [0, 1], and so are differences.

    All of it is of the task's first measure, `score`; of what else it has, `others` holds the same.

    Args:
        results: of one norm, protocol and number of images a dataset.
        failed: what went wrong, by cell.

    Raises:
        ValueError: what `ScoreTable.from_results` refuses.
    """
    table, first = ScoreTable.from_results(results), ScoreTable.from_results(results, first=True)
    norm = results[0].norm if results else None
    protocols = {format_eps(eps_of(each)): each.protocol for each in sorted(results, key=eps_of)}
    papers = {format_eps(eps_of(each)): is_measured_as_paper(each) for each in sorted(results, key=eps_of)}
    runs: dict[tuple[Configuration, str], list[MeasuredCell]] = {}
    for each in results:
        runs.setdefault((configuration_of(each), each.setting), []).append(each)
    others = MEASURES[type(results[0].report)][1:] if results and results[0].seen_by is None else ()
    return {
        "score": results[0].measure.name if results else ACCURACY.name,
        "norm": norm,
        "split": split_of(results[0]) if results else None,
        "protocols": protocols,
        "papers_protocol": papers,
        "images": {each.dataset: each.report.num_samples for each in sorted(results, key=lambda each: each.dataset)},
        "reliability": count_reliable(each.report.reliability for each in results) if results else None,
        "cells": [
            _cell(table, configuration, setting)
            | _first_scores(first, runs[configuration, setting], configuration, setting)
            | _beside_the_paper(first, norm, papers[configuration.eps], runs[configuration, setting])
            for configuration in table.configurations
            for setting in table.settings
            if table.by_seed(configuration, setting)
        ],
        "missing": [
            {**configuration._asdict(), "setting": setting, "seeds": seeds}
            for (configuration, setting), seeds in table.missing().items()
        ],
        "failed": dict(failed),
        "wins": [row for compared in _comparisons(table) for row in _wins(table, *compared)],
        "papers_wins": _papers_wins(table, norm) if results and results[0].measure is ACCURACY else [],
        "t_tests": [row for compared in _comparisons(table) for row in _t_tests(table, *compared)],
        "means": _means(table),
        "costs": _costs(results),
        "others": [summarise([dataclasses.replace(each, seen_by=other) for each in results], {}) for other in others],
    }


def _cell(table: ScoreTable, configuration: Configuration, setting: str) -> dict[str, Any]:
    return {
        **configuration._asdict(),
        "setting": setting,
        "seeds": list(table.by_seed(configuration, setting)),
        **_mean_and_sd(table, configuration, setting),
    }


def _first_scores(
    first: ScoreTable, runs: Sequence[MeasuredCell], configuration: Configuration, setting: str
) -> dict[str, Any]:
    """Beside converged figures those after the first attack steps, and how many of the runs settled."""
    converged = [each.report.convergence for each in runs]
    if not all(converged):
        return {"first": None, "settled": None}
    scores = {"steps": runs[0].first_steps, **_mean_and_sd(first, configuration, setting)}
    return {"first": scores, "settled": sum(each["settled"] for each in converged)}


def _mean_and_sd(table: ScoreTable, configuration: Configuration, setting: str) -> dict[str, Any]:
    mean, sd = table.mean(configuration, setting), table.deviation(configuration, setting)
    return {"mean": mean._asdict(), "sd": sd._asdict() if sd else None}


def _beside_the_paper(
    first: ScoreTable, norm: str, papers_protocol: bool, runs: Sequence[MeasuredCell]
) -> dict[str, Any]:
    """The paper's figure, and ours minus it: where ours converged, that after the paper's steps."""
    configuration, setting = configuration_of(runs[0]), runs[0].setting
    paper = paper_figure(norm, configuration, setting)
    mean = first.mean(configuration, setting)
    return {
        "paper": paper._asdict() if paper else None,
        "difference": _minus(mean, paper) if paper and papers_protocol else None,
        "trained_otherwise": list(dict.fromkeys(what for each in runs for what in trained_otherwise(each)))
        if paper
        else [],
    }


def _comparisons(table: ScoreTable) -> list[tuple[str, str]]:
    """(setting, reference) of every two settings worth comparing, each two once."""
    found: list[tuple[str, str]] = []
    for reference in REFERENCES:
        if reference in table.settings:
            others = [each for each in table.settings if each != reference]
            found += [(each, reference) for each in others if (reference, each) not in found]
    return found


def _by_eps(table: ScoreTable) -> dict[str, list[Configuration]]:
    """Configurations of each eps, and of all eps where there are several."""
    found: dict[str, list[Configuration]] = {}
    for configuration in table.configurations:
        found.setdefault(configuration.eps, []).append(configuration)
    return found | ({ALL_EPS: table.configurations} if len(found) > 1 else {})


def _wins(table: ScoreTable, setting: str, reference: str) -> Iterable[dict[str, Any]]:
    for eps, configurations in _by_eps(table).items():
        if pairs := table.paired_means(setting, reference, configurations):
            scores = {score: dataclasses.asdict(count_wins(pairs, score)) for score in Scores._fields}
            yield {"setting": setting, "reference": reference, "eps": eps, "pairs": len(pairs), **scores}


def _papers_wins(table: ScoreTable, norm: str | None) -> list[dict[str, Any]]:
    """Wins of hinge over fix in the paper's own tables, for each eps that it shares with the grid."""
    if norm != "Linf":
        return []
    ours = {configuration.eps for configuration in table.configurations}
    return [row for row in _wins(ScoreTable.from_paper(), "hinge", "fix") if row["eps"] in ours]


def _t_tests(table: ScoreTable, setting: str, reference: str) -> Iterable[dict[str, Any]]:
    compared = {"setting": setting, "reference": reference}
    for eps, configurations in _by_eps(table).items():
        tests = {
            score: t_test_over_configurations(table, setting, reference, score, configurations)
            for score in Scores._fields
        }
        if tests["clean"].n:
            yield {"pairs_are": "configurations", **compared, "eps": eps, **_as_dicts(tests)}
    for configuration in table.configurations:
        tests = {score: t_test_over_seeds(table, configuration, setting, reference, score) for score in Scores._fields}
        if tests["clean"].n:
            yield {"pairs_are": "seeds", **compared, **configuration._asdict(), **_as_dicts(tests)}


def _means(table: ScoreTable) -> list[dict[str, Any]]:
    """Means over configurations: all of an eps, those of each backbone, and those of each dataset."""
    found = []
    for eps, configurations in _by_eps(table).items():
        groups = {("all", "all"): configurations}
        for by in ("model", "dataset"):
            for configuration in configurations:
                groups.setdefault((by, getattr(configuration, by)), []).append(configuration)
        kinds = {by: len({name for kind, name in groups if kind == by}) for by in ("model", "dataset")}
        for (by, name), members in groups.items():
            if by != "all" and kinds[by] == 1:  # the same as over all
                continue
            for setting in table.settings:
                means = [table.mean(each, setting) for each in members if table.by_seed(each, setting)]
                if means and not schedule_epochs(setting):
                    found.append(
                        {
                            "eps": eps,
                            "by": by,
                            "group": name,
                            "setting": setting,
                            "configurations": len(means),
                            "mean": mean_scores(means)._asdict(),
                            **_against_reference(table, setting, members),
                        }
                    )
    return found


def _against_reference(table: ScoreTable, setting: str, members: Iterable[Configuration]) -> dict[str, Any]:
    pairs = [] if setting == REFERENCES[0] else table.paired_means(setting, REFERENCES[0], members)
    ours, theirs = (mean_scores(side) for side in zip(*pairs, strict=True)) if pairs else (None, None)
    return {"pairs": len(pairs), "difference": _minus(ours, theirs) if pairs else None}


def _costs(results: Sequence[MeasuredCell]) -> list[dict[str, Any]]:
    """Mean passes and seconds of a run by backbone, dataset and setting.

    Attack passes also as a share of hinge's, and all of them as `forwards`: so many times as much did fix cost.
    """
    runs: dict[tuple[str, str, str], list[MeasuredCell]] = {}
    order = ScoreTable.from_results(results).settings
    for each in sorted(results, key=lambda each: (each.model, each.dataset, order.index(each.setting))):
        runs.setdefault((each.model, each.dataset, each.setting), []).append(each)
    rows = []
    for (model, dataset, setting), of_setting in runs.items():
        fix, hinge = (_mean_of(runs.get((model, dataset, each), []), "passes") for each in REFERENCES)
        whole = hinge.get("attack", 0)
        passes = _mean_of(of_setting, "passes")
        forwards = in_forwards(passes)
        rows.append(
            {
                "model": model,
                "dataset": dataset,
                "setting": setting,
                "runs": len(of_setting),
                "passes": passes,
                "attack_share_of_hinge": passes.get("attack", 0) / whole if whole else None,
                "forwards": forwards,
                "fix_costs_times": in_forwards(fix) / forwards if fix else None,
                "seconds": _mean_of(of_setting, "seconds"),
            }
        )
    return rows


def _mean_of(results: Sequence[MeasuredCell], name: str) -> dict[str, float]:
    counted = [getattr(each, name) for each in results]
    kinds = list(dict.fromkeys(kind for each in counted for kind in each))
    return {kind: sum(each.get(kind, 0) for each in counted) / len(counted) for kind in kinds}


def _minus(ours: Scores, theirs: Scores) -> dict[str, float]:
    return {score: getattr(ours, score) - getattr(theirs, score) for score in Scores._fields}


def _as_dicts(tests: Mapping[str, Any]) -> dict[str, Any]:
    return {score: dataclasses.asdict(test) for score, test in tests.items()}
