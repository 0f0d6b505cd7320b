"""Results put in order, those of one setting in one ranking: figures of different settings are not comparable."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hf_robust_ft.attacks.threat_model import format_eps, parse_eps
from hf_robust_ft.hub.leaderboard.results import SCORES, Result
from hf_robust_ft.hub.leaderboard.sources import Problem
from hf_robust_ft.reporting.comparability import Setting


@dataclass(frozen=True)
class Ranking:
    """Results of one setting, best first, all doubtful ones last; `places` counts from 1, equal scores share one."""

    setting: Setting
    results: list[Result]
    places: list[int]


@dataclass(frozen=True)
class Leaderboard:
    """Rankings, and what could not be read.

    Attributes:
        rankings: one a setting, those with the most results first.
        problems: sources with the reason they are missing or doubtful.
        sorted_by: one of `SCORES`.
        left_out: results of settings that were not asked for.
    """

    rankings: list[Ranking]
    problems: list[Problem]
    sorted_by: str = SCORES[0]
    left_out: int = 0

    @classmethod
    def of(
        cls,
        results: Sequence[Result],
        problems: Sequence[Problem] = (),
        *,
        sorted_by: str = SCORES[0],
        wanted: Mapping[str, str | None] | None = None,
        one_ranking: bool = False,
    ) -> "Leaderboard":
        """Rank results.

        Args:
            sorted_by: one of `SCORES`.
            wanted: what a setting must have to be shown, e.g. {"norm": "Linf", "eps": "8/255"}; None leaves it free.
            one_ranking: refuse several settings.

        Raises:
            ValueError: nothing to rank, or settings that differ where one ranking was asked for.
        """
        wanted = {name: value for name, value in (wanted or {}).items() if value is not None}
        if "eps" in wanted:
            wanted["eps"] = format_eps(parse_eps(wanted["eps"]))
        chosen = [
            result for result in results if all(getattr(result.setting, key) == value for key, value in wanted.items())
        ]
        if not chosen:
            raise ValueError(_nothing(results, problems, wanted))
        groups: dict[Setting, list[Result]] = {}
        for result in chosen:
            groups.setdefault(result.setting, []).append(result)
        if one_ranking and len(groups) > 1:
            raise ValueError(_not_one(groups))
        rankings = [_ranked(setting, group, sorted_by) for setting, group in groups.items()]
        rankings.sort(key=lambda ranking: (-len(ranking.results), str(ranking.setting)))
        return cls(rankings, list(problems), sorted_by, len(results) - len(chosen))


def _ranked(setting: Setting, results: Sequence[Result], sorted_by: str) -> Ranking:
    def merit(result: Result) -> tuple[bool, float]:
        value = getattr(result, sorted_by)
        return result.is_reliable, -1.0 if value is None else value

    ordered = sorted(sorted(results, key=lambda result: result.source), key=merit, reverse=True)
    return Ranking(setting, ordered, [1 + sum(merit(other) > merit(result) for other in ordered) for result in ordered])


def _not_one(groups: Mapping[Setting, Sequence[Result]]) -> str:
    (first, some), (second, others), *_ = groups.items()
    return (
        f"{len(groups)} settings cannot stand in one ranking: {some[0].source} and {others[0].source} differ in "
        f"{', '.join(first.differences(second))}. Choose with --norm, --eps, --protocol or --dataset, or leave "
        "--one_ranking out."
    )


def _nothing(results: Sequence[Result], problems: Sequence[Problem], wanted: Mapping[str, str]) -> str:
    if results:
        asked = ", ".join(f"{name} {value}" for name, value in wanted.items())
        known = "; ".join(dict.fromkeys(str(result.setting) for result in results))
        return f"No result has {asked}. There are: {known}."
    reasons = "; ".join(f"{each.source}: {each.reason}" for each in problems)
    return f"No result could be read. {reasons or 'No model carries the tag.'}"
