"""What two results must share before one may be called better than the other."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hf_robust_ft.attacks.threat_model import default_epsilons, format_eps
from hf_robust_ft.evaluation.report import RobustnessReport

UNKNOWN = "not stated"
UNNAMED_DATASET = "the evaluation dataset"  # as cards call one that nobody named
DEFAULT_GRID = "the norm's"
CLASSIFICATION = "image-classification"


@dataclass(frozen=True)
class Setting:
    """How a result was measured, in words; equal settings are comparable results.

    Attributes:
        dataset: what was evaluated on.
        split: of it.
        images: how many.
        norm: of the threat model.
        eps: eps_g, as `format_eps` writes it.
        protocol: how the curve was measured.
        attack: its loss, steps and restarts.
        grid: of the trapezoid rule, where it is not the protocol's own; the protocol "exact" uses none.
        image_set: which images, as the function of this name gives it. Results of older versions, which do not tell it,
            are comparable only among themselves.
        task: the Hub's `pipeline_tag` of the models.
    """

    dataset: str
    split: str
    images: str
    norm: str
    eps: str
    protocol: str
    attack: str
    grid: str = DEFAULT_GRID
    image_set: str = UNKNOWN
    task: str = CLASSIFICATION

    @classmethod
    def of(cls, report: RobustnessReport, **told: str) -> "Setting":
        """The setting of a report; `told` says what another task's report tells otherwise."""
        facts, norm, eps = report.metadata, report.threat_model["norm"], report.epsilons[-1]
        usual = default_epsilons(eps, norm)
        is_usual = len(usual) == len(report.epsilons) and np.allclose(usual, report.epsilons, rtol=0, atol=1e-9)
        known = {
            "dataset": dataset_text(facts.get("dataset") or facts.get("dataset_name"), facts.get("dataset_config")),
            "split": str(facts.get("split") or UNKNOWN),
            "images": str(report.num_samples),
            "norm": norm,
            "eps": format_eps(eps),
            "protocol": report.protocol,
            "grid": DEFAULT_GRID if is_usual or report.protocol == "exact" else f"{len(report.epsilons)} points",
        }
        if not told:
            told = {"attack": measured_by(report), "image_set": image_set(image_digests(report)) or UNKNOWN}
        return cls(**known, **told)

    def differences(self, other: "Setting") -> list[str]:
        """What keeps two results apart, "protocol (paper, exact)"; empty if they can be compared."""
        mine, theirs = asdict(self), asdict(other)
        return [f"{name} ({mine[name]}, {theirs[name]})" for name in mine if mine[name] != theirs[name]]

    def __str__(self) -> str:
        grid = "" if self.grid == DEFAULT_GRID else f", grid of {self.grid}"
        which = "which images is not stated" if self.image_set == UNKNOWN else f"images {self.image_set}"
        task = "" if self.task == CLASSIFICATION else f"{self.task} on "
        return (
            f"{task}{self.dataset} ({self.split} split, {self.images} images), {self.norm} {self.eps}, protocol "
            f"{self.protocol}{grid}, {self.attack}, {which}"
        )


def image_digests(report: RobustnessReport) -> dict[str, str]:
    """What a report and its card tell of its images: `source_digest`, of their files, and `image_digest`, of their
    pixels as evaluated; "" where it does not."""
    return {"source_digest": report.metadata.source_digest or "", "image_digest": report.image_digest}


def image_set(told: Mapping[str, Any]) -> str:
    """Which images a result is of, by what tells its `image_digests`: by their files where it tells these, so that
    models of other input sizes can be compared, else by their pixels; "" where it tells neither.

    Cards of older versions gave either as `image_digest`.
    """
    return str(told.get("source_digest") or told.get("image_digest") or "")


def dataset_text(name: str | None, configuration: str | None) -> str:
    """A dataset by its id and, where it has several, its configuration."""
    return (str(name) if name else UNKNOWN) + (f", {configuration}" if name and configuration else "")


def measured_by(report: RobustnessReport) -> str:
    """The attack, "APGD-CE-10 in bf16" where it ran in half precision, in which it is weaker."""
    precision = report.metadata.evaluated_in
    return attack_name(report.attack, report.convergence) + (f" in {precision}" if precision else "")


def attack_name(attack: Mapping[str, Any], convergence: Mapping[str, Any] | None = None) -> str:
    """A report's attack as cards call it; converged steps by their limit, as how many it took is the model's.

    >>> attack_name({"steps": 10, "loss": "ce", "restarts": 1, "random_start": False, "select": "fooled"})
    'APGD-CE-10'
    >>> attack_name({"steps": 40, "loss": "dlr", "restarts": 5, "random_start": True})
    'APGD-DLR-40, 5 restarts, random start'
    >>> attack_name({"steps": 10, "loss": "ce", "larger_eps": True})
    'APGD-CE-10, larger eps first'
    >>> attack_name({"steps": 40, "loss": "ce"}, {"limit": 160})
    'APGD-CE-auto (at most 160)'
    """
    steps = f"auto (at most {convergence['limit']})" if convergence else attack.get("steps", "?")
    name = f"APGD-{str(attack.get('loss', '?')).upper().replace('_', '-')}-{steps}"
    restarts = f", {attack['restarts']} restarts" if attack.get("restarts", 1) != 1 else ""
    larger = ", larger eps first" if attack.get("larger_eps") else ""
    return name + restarts + (", random start" if attack.get("random_start") else "") + larger
