"""Settings of a grid against each other: means over seeds, wins, paired t-tests, and the paper's figures."""

import itertools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.stats import ttest_rel

from hf_robust_ft.attacks import APGD
from hf_robust_ft.attacks.threat_model import format_eps, parse_eps
from hf_robust_ft.experiments.grid.results import MeasuredCell
from hf_robust_ft.experiments.grid.settings import schedule_epochs
from hf_robust_ft.experiments.paper.numbers import Scores, fix_and_schedule
from hf_robust_ft.models.backbones import BACKBONES

_ORDER = ("standard", "fix", "linear_warmup", "uniform", "auto", "hinge")
_TIE = 1e-9  # accuracies nearer than this are equal: one image in a million is a thousand times more


class Configuration(NamedTuple):
    """What settings are compared on; eps as `format_eps` writes it."""

    model: str
    dataset: str
    eps: str


@dataclass(frozen=True)
class Wins:
    """In how many configurations a setting scores higher, as high, and lower than the reference."""

    wins: int
    ties: int
    losses: int

    @property
    def pairs(self) -> int:
        return self.wins + self.ties + self.losses


@dataclass(frozen=True)
class PairedTest:
    """A two-sided paired t-test of setting minus reference.

    Args:
        n: pairs.
        difference: mean over the pairs; None without a pair.
        t: None where it is not defined; `note` then says why.
    """

    n: int
    difference: float | None
    t: float | None = None
    p: float | None = None
    note: str = ""


@dataclass(frozen=True)
class ScoreTable:
    """Scores by configuration and setting, then by seed."""

    scores: Mapping[tuple[Configuration, str], Mapping[int, Scores]]

    @classmethod
    def from_results(cls, results: Iterable[MeasuredCell], *, first: bool = False) -> "ScoreTable":
        """Take what was measured, with `first` after the first attack steps (`MeasuredCell.first_scores`).

        Raises:
            ValueError: the same cell and seed twice, or what `check_comparable` refuses.
        """
        results = list(results)
        check_comparable(results)
        scores: dict[tuple[Configuration, str], dict[int, Scores]] = {}
        for each in results:
            found = scores.setdefault((configuration_of(each), each.setting), {})
            if each.seed in found:
                raise ValueError(
                    f"Two results for {'/'.join(configuration_of(each))}, {each.setting}, seed {each.seed}. "
                    "Leave one of them out."
                )
            found[each.seed] = each.first_scores if first else each.scores
        return cls({key: dict(sorted(by_seed.items())) for key, by_seed in scores.items()})

    @classmethod
    def from_paper(cls) -> "ScoreTable":
        """Tables 1 and 2 of arXiv 2509.23325: "fix" and "hinge" over 30 configurations at 4/255 and at 8/255."""
        return cls(
            {
                (Configuration(cell.model, cell.dataset, format_eps(cell.eps_255 / 255)), cell.setting): {0: scores}
                for cell, scores in fix_and_schedule().items()
            }
        )

    @property
    def configurations(self) -> list[Configuration]:
        """By eps, then in the order of the paper's backbones, then by name."""
        return sorted({configuration for configuration, _ in self.scores}, key=_configuration_rank)

    @property
    def settings(self) -> list[str]:
        """The well-known ones first, the ablation's by T1 and T2 last."""
        return sorted({setting for _, setting in self.scores}, key=setting_rank)

    def by_seed(self, configuration: Configuration, setting: str) -> Mapping[int, Scores]:
        """Empty where there is no result."""
        return self.scores.get((configuration, setting), {})

    def mean(self, configuration: Configuration, setting: str) -> Scores | None:
        """Over seeds; None where there is no result."""
        return mean_scores(self.by_seed(configuration, setting).values())

    def deviation(self, configuration: Configuration, setting: str) -> Scores | None:
        """Sample standard deviation over seeds; None with fewer than two."""
        seeds = list(self.by_seed(configuration, setting).values())
        return Scores(*np.std(seeds, axis=0, ddof=1).tolist()) if len(seeds) > 1 else None

    def paired(self, configuration: Configuration, setting: str, reference: str) -> list[tuple[Scores, Scores]]:
        """(setting, reference) of every seed that both have."""
        ours, theirs = self.by_seed(configuration, setting), self.by_seed(configuration, reference)
        return [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]

    def paired_means(
        self, setting: str, reference: str, configurations: Iterable[Configuration] | None = None
    ) -> list[tuple[Scores, Scores]]:
        """(setting, reference) of every configuration that has both: means over the seeds that both have."""
        everywhere = self.configurations if configurations is None else configurations
        pairs = [self.paired(configuration, setting, reference) for configuration in everywhere]
        return [tuple(mean_scores(side) for side in zip(*each, strict=True)) for each in pairs if each]

    def missing(self) -> dict[tuple[Configuration, str], list[int]]:
        """Seeds without a result, by cell, of all backbones x datasets x eps x settings x seeds that occur.

        Settings of the (T1, T2) ablation are expected where one of them was run only, and with the seeds of those.
        """
        ablation = {key for key in self.scores if schedule_epochs(key[1])}
        found: dict[tuple[Configuration, str], list[int]] = {}
        for keys in (set(self.scores) - ablation, ablation):
            places = {configuration for configuration, _ in keys}
            if keys and keys is not ablation:
                places = {Configuration(*each) for each in itertools.product(*map(set, zip(*places, strict=True)))}
            seeds = sorted({seed for key in keys for seed in self.scores[key]})
            for key in itertools.product(places, {setting for _, setting in keys}):
                if lacking := [seed for seed in seeds if seed not in self.scores.get(key, {})]:
                    found[key] = lacking
        return dict(sorted(found.items(), key=lambda item: (_configuration_rank(item[0][0]), setting_rank(item[0][1]))))


def check_comparable(results: Sequence[MeasuredCell]) -> None:
    """Refuse results that were not measured alike.

    The number of points of eps and the number of images may differ between eps and between datasets, nothing else.

    Raises:
        ValueError: several tasks, norms, splits, protocols, attacks, or numbers of images of one dataset; it says how
            to separate.
    """
    _same("tasks", results, lambda each: type(each.report).__name__)
    _same("norms", results, lambda each: each.norm)
    _same("splits", results, split_of)
    _same("protocols", results, lambda each: each.protocol.rsplit(",", 1)[0])
    for eps in sorted({eps_of(each) for each in results}):
        alike = [each for each in results if eps_of(each) == eps]
        _same(f"protocols at {format_eps(eps)}", alike, lambda each: each.protocol)
        _same(f"epsilons up to {format_eps(eps)}", alike, lambda each: ", ".join(map(format_eps, each.report.epsilons)))
    keys = {key for each in results for attack in each.attacks for key in attack} - {"steps"}  # those are in `protocol`
    for key in sorted(keys):
        told = f"settings of the attack ({key})"
        usual = getattr(APGD, key, None)  # of results from before there was this setting
        _same(told, results, lambda each, key=key, usual=usual: ", ".join(str(a.get(key, usual)) for a in each.attacks))
    for dataset in sorted({each.dataset for each in results}):
        alike = [each for each in results if each.dataset == dataset]
        _same(f"numbers of images of {dataset}", alike, lambda each: str(each.report.num_samples))


def _same(what: str, results: Sequence[MeasuredCell], value: Callable[[MeasuredCell], str]) -> None:
    first: dict[str, MeasuredCell] = {}
    for each in results:
        first.setdefault(value(each), each)
    if len(first) > 1:
        seen = "; ".join(f"{found} (e.g. {_name(each)})" for found, each in first.items())
        raise ValueError(
            f"Results of different {what} cannot stand in one table: {seen}. Keep each kind in a grid folder of its "
            "own, or measure all of them alike."
        )


def count_wins(pairs: Iterable[tuple[Scores, Scores]], score: str) -> Wins:
    """Of (setting, reference) pairs, how often the setting's `score` (a field of `Scores`) is higher.

    >>> count_wins(ScoreTable.from_paper().paired_means("hinge", "fix"), "expected")
    Wins(wins=60, ties=0, losses=0)
    """
    differences = [getattr(ours, score) - getattr(theirs, score) for ours, theirs in pairs]
    wins, losses = sum(each > _TIE for each in differences), sum(each < -_TIE for each in differences)
    return Wins(wins, len(differences) - wins - losses, losses)


def t_test_over_configurations(
    table: ScoreTable,
    setting: str,
    reference: str,
    score: str,
    configurations: Iterable[Configuration] | None = None,
) -> PairedTest:
    """One pair for each configuration that has both settings: their means over the seeds that both have.

    Configurations that share a backbone or dataset are not independent, so p is smaller than it should be.
    """
    return _t_test(table.paired_means(setting, reference, configurations), score, "configuration")


def t_test_over_seeds(
    table: ScoreTable, configuration: Configuration, setting: str, reference: str, score: str
) -> PairedTest:
    """One pair for each seed that both settings have in one configuration."""
    return _t_test(table.paired(configuration, setting, reference), score, "seed")


def _t_test(pairs: Sequence[tuple[Scores, Scores]], score: str, unit: str) -> PairedTest:
    if not pairs:
        return PairedTest(0, None, note=f"no {unit} in common")
    ours, theirs = (np.array([getattr(side, score) for side in column]) for column in zip(*pairs, strict=True))
    difference = float((ours - theirs).mean())
    if len(pairs) == 1:
        return PairedTest(1, difference, note=f"one {unit}: no test")
    if np.ptp(ours - theirs) < _TIE:
        return PairedTest(len(pairs), difference, note=f"the same difference in every {unit}: no test")
    with warnings.catch_warnings():
        # Differences that are nearly alike cost the test digits, which does not matter for a p that small.
        warnings.simplefilter("ignore", RuntimeWarning)
        found = ttest_rel(ours, theirs)
    return PairedTest(len(pairs), difference, float(found.statistic), float(found.pvalue))


def mean_scores(scores: Iterable[Scores]) -> Scores | None:
    """The mean of each score; None of none."""
    scores = list(scores)
    return Scores(*np.mean(scores, axis=0).tolist()) if scores else None


def split_of(result: MeasuredCell) -> str:
    """The held-out split that was measured."""
    return result.report.metadata.get("split", "test")


def eps_of(result: MeasuredCell) -> float:
    """In pixel units of [0, 1]."""
    return parse_eps(result.eps)


def configuration_of(result: MeasuredCell) -> Configuration:
    return Configuration(result.model, result.dataset, format_eps(eps_of(result)))


def setting_rank(setting: str) -> tuple:
    """What settings are sorted by: "auto:patience=2" stands behind "auto"."""
    name = setting.partition(":")[0]
    place = _ORDER.index(name) if name in _ORDER else len(_ORDER)
    epochs = schedule_epochs(setting)
    return (epochs is not None, epochs or (), place, setting)


def _configuration_rank(configuration: Configuration) -> tuple:
    known = list(BACKBONES)
    place = known.index(configuration.model) if configuration.model in known else len(known)
    return (parse_eps(configuration.eps), place, configuration.model, configuration.dataset)


def _name(result: MeasuredCell) -> str:
    return f"{'/'.join(configuration_of(result))}, {result.setting}, seed {result.seed}"
