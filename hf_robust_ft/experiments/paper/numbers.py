"""The tables of arXiv 2509.23325, by this package's names of backbones, datasets and settings.

Percentages are given as shares in [0, 1]. The README beside this file says where each comes from, and where the paper
contradicts itself.
"""

import csv
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import NamedTuple

MODELS = MappingProxyType(
    {"ViT": "vit", "SWIN": "swin", "CNX": "cnx", "R50": "r50", "ClipViT": "clip_vit", "ClipCNX": "clip_cnx"}
)
DATASETS = MappingProxyType(
    {
        "Caltech": "caltech256",
        "Cub": "cub200",
        "Dogs": "stanford_dogs",
        "Cars": "stanford_cars",
        "Aircraft": "fgvc_aircraft",
    }
)
SETTINGS = MappingProxyType({"fix": "fix", "sched": "hinge", "uniform": "uniform", "auto": "auto"})


class Scores(NamedTuple):
    """Three accuracies in [0, 1]: at eps 0, at eps_g, and the mean over eps in [0, eps_g]."""

    clean: float
    adversarial: float
    expected: float


class PaperCell(NamedTuple):
    """What one figure of the paper is of; eps_g = `eps_255`/255 under Linf."""

    model: str
    dataset: str
    eps_255: int
    setting: str


@cache
def fix_and_schedule() -> Mapping[PaperCell, Scores]:
    """Tables 1 and 2: "fix" and "hinge" of 6 backbones x 5 datasets at 4/255 and 8/255."""
    return _by_cell(_rows("table1_2_fix_vs_sched.csv"))


@cache
def uniform_and_auto() -> Mapping[PaperCell, Scores]:
    """Table 8: "uniform" and "auto" at 4/255, on some of the backbones and datasets."""
    return _by_cell(_rows("table8_uniform_4_255.csv"))


@cache
def start_and_end() -> Mapping[PaperCell, Scores]:
    """Table 7: the settings "hinge:T1,T2" (epochs of 50) of SWIN on Cars at 4/255 and 8/255."""
    return MappingProxyType(
        {
            PaperCell("swin", "stanford_cars", eps, f"hinge:{row['T1']},{row['T2']}"): _scores(
                row[f"clean{eps}"], row[f"adv{eps}"], row[f"eadv{eps}"]
            )
            for row in _rows("table7_T1_T2_swin_cars.csv")
            for eps in (4, 8)
        }
    )


@cache
def under_attack(attack: str) -> Mapping[PaperCell, Scores]:
    """Table 6: SWIN on Aircraft and Cars, "fix" and "hinge", under one attack.

    Args:
        attack: "APGD" or "AutoAttack".

    Raises:
        ValueError: another attack.
    """
    if attack not in ("APGD", "AutoAttack"):
        raise ValueError(f"The paper's Table 6 has the attacks APGD and AutoAttack, not {attack!r}.")
    rows = [row | {"model": "SWIN"} for row in _rows("table6_autoattack_swin.csv") if row["attack"] == attack]
    return _by_cell(rows)


@cache
def delays() -> Mapping[tuple[str, str], Mapping[int, int]]:
    """Figure 8, read off plots: {(model, dataset): {eps_255: epochs until validation accuracy exceeds 5 %}}.

    The paper counts runs that never get there with all 50 epochs.
    """
    panels = {"first": "swin", "second": "vit"}
    found: dict[tuple[str, str], dict[int, int]] = {}
    for row in _rows("fig8_delay_epochs_swin_vit.csv"):
        for name, dataset in DATASETS.items():
            found.setdefault((panels[row["panel"]], dataset), {})[int(row["eps_255"])] = int(row[name])
    return MappingProxyType(found)


def paper_scores(model: str, dataset: str, eps: float, setting: str) -> Scores | None:
    """The paper's figure for a cell, or None where it prints none.

    "fix" and "hinge" come from Tables 1 and 2, "uniform" and "auto" from Table 8, "hinge:T1,T2" from Table 7.

    Args:
        eps: eps_g under Linf, in pixel units of [0, 1].

    >>> paper_scores("swin", "stanford_cars", 4 / 255, "hinge")
    Scores(clean=0.847, adversarial=0.432, expected=0.6641)
    >>> paper_scores("swin", "digits", 4 / 255, "hinge") is None
    True
    """
    eps_255 = round(255 * eps)
    if abs(255 * eps - eps_255) > 1e-6:
        return None
    cell = PaperCell(model, dataset, eps_255, setting)
    return next(
        (table[cell] for table in (fix_and_schedule(), uniform_and_auto(), start_and_end()) if cell in table), None
    )


def _rows(name: str) -> list[dict[str, str]]:
    with files("hf_robust_ft.experiments.paper").joinpath(name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _by_cell(rows: list[dict[str, str]]) -> Mapping[PaperCell, Scores]:
    return MappingProxyType(
        {
            PaperCell(
                MODELS[row["model"]], DATASETS[row["dataset"]], int(row["eps_255"]), SETTINGS[row["setting"]]
            ): _scores(row["clean"], row["adv"], row["e_adv"])
            for row in rows
        }
    )


def _scores(*percentages: str) -> Scores:
    return Scores(*(round(float(each) / 100, 4) for each in percentages))
