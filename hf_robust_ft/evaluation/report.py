"""What was measured of a model's robustness, and how: the record that prints, plots and cards are made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_robust_ft.attacks.threat_model import format_eps
from hf_robust_ft.evaluation.convergence_text import convergence_sentence
from hf_robust_ft.evaluation.reliability import reliability_of, short_verdict
from hf_robust_ft.evaluation.stored_report import StoredReport
from hf_robust_ft.metrics.robustness.curve import grid_weights, survival_expectation
from hf_robust_ft.metrics.robustness.threat_distribution_specs import parse_distribution
from hf_robust_ft.provenance.facts import RunFacts
from hf_robust_ft.provenance.plain_text import one_line

SCHEMA_VERSION = 2  # 1: before there was a number


@dataclass(frozen=True)
class RobustnessReport(StoredReport):
    """What was measured and how. Accuracies lie in [0, 1]; every eps is in pixel units of [0, 1].

    Attributes:
        clean_accuracy: accuracy at eps = 0.
        adversarial_accuracy: accuracy at the largest eps.
        expected_robustness: mean accuracy over eps in [0, eps_g] (arXiv 2509.23325).
        epsilons: the grid, increasing from 0 to eps_g.
        accuracies: accuracy at each of them.
        threat_model: {"norm": ..., "eps": ...}.
        attack: settings of the attack, `APGD`'s fields; with converged steps, those of the last round.
        protocol: a key of `PROTOCOLS`.
        num_samples: images evaluated.
        smallest_epsilons: per image, the smallest eps found to fool it: 0 if it is misclassified as it is, None if
            nothing up to eps_g did. Under the protocol "paper" these are points of the grid.
        confidence_intervals: 95 % intervals over the images: [low, high] of the three scores and of
            "autoattack_accuracy", and for "accuracies" one a grid point; by which "method". They tell what other images
            would change, not what a stronger attack would.
        per_class: the three scores and the number of images of each class.
        distributions: expected robustness under other distributions of eps than the uniform one, by their names.
        autoattack_accuracy: accuracy under standard AutoAttack at eps_g, if it was run.
        autoattack_samples: on how many images.
        autoattack_images: which these are, drawn by a seed, equally many of each class as far as there are; empty in
            reports of versions that took the first.
        checks: what tells whether the accuracies can be trusted (`trust_verdicts.TrustCheck`'s fields).
        convergence: with `attack_steps="auto"` the `limit` of steps, whether the accuracy has `settled`, and `rounds`:
            per number of steps `adversarial_accuracy`, `expected_robustness`, `accuracies`. All other figures are
            those after the last round; the first round's are the paper's. Empty where the steps were fixed.
        image_hashes: per image, 16 hex digits of its pixels as evaluated (`image_hashes.hash_images`); empty in
            reports of versions that told none.
        image_digest: 16 hex digits for all of them, whatever their order.
        passes: images in all `forwards` and `gradients` of the attacks (trust checks apart).
        found_again: how many `examples` there are, misclassified points of images that were right, and how many of
            them were `misclassified` again in other batches.
        metadata: what else the writer knew (model, dataset, training settings, versions), any mapping.
        schema_version: of this record as a file; older ones are read, and become this one.
        reliability: {"verdict": "ok" or "doubtful", "reasons": [...]} by `reliability.reliability_of`; it follows from
            the rest, and whatever is given, or read from a file, is replaced.
    """

    newest_schema = SCHEMA_VERSION
    described = "robustness report"

    clean_accuracy: float
    adversarial_accuracy: float
    expected_robustness: float
    epsilons: list[float]
    accuracies: list[float]
    threat_model: dict[str, Any]
    attack: dict[str, Any]
    protocol: str
    num_samples: int
    smallest_epsilons: list[float | None] = field(default_factory=list)
    confidence_intervals: dict[str, Any] = field(default_factory=dict)
    per_class: list[dict[str, Any]] = field(default_factory=list)
    distributions: dict[str, float] = field(default_factory=dict)
    autoattack_accuracy: float | None = None
    autoattack_samples: int = 0
    autoattack_images: list[int] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    convergence: dict[str, Any] = field(default_factory=dict)
    image_hashes: list[str] = field(default_factory=list)
    image_digest: str = ""
    passes: dict[str, int] = field(default_factory=dict, compare=False)  # what it cost is no result
    found_again: dict[str, int] = field(default_factory=dict)
    metadata: RunFacts = field(default_factory=RunFacts)
    schema_version: int = SCHEMA_VERSION
    reliability: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        self._settle(reliability_of)

    def expected_robustness_under(self, distribution: str | Mapping[float | str, float]) -> float:
        """The mean accuracy over an eps that is not uniform on [0, eps_g].

        Args:
            distribution: "uniform", "beta:A,B", "truncnorm:MEAN,STD", "dirac:EPS", or any weights of any eps:
                "weights:EPS=WEIGHT,..." or {EPS: WEIGHT, ...} (see `metrics.robustness.threat_distribution_specs`).

        Raises:
            ValueError: an unknown distribution, or parameters out of range.
        """
        parsed = parse_distribution(distribution, self.epsilons[-1])
        if self.protocol == "exact":
            return survival_expectation(parsed, _as_array(self.smallest_epsilons))
        return float(grid_weights(parsed, self.epsilons) @ np.array(self.accuracies))

    def accuracies_at(self, epsilons: Sequence[float]) -> list[float]:
        """Accuracy at other points of [0, eps_g] than the grid's.

        Under the protocol "exact" counted image by image; otherwise on the line between the points of the grid, as
        the trapezoid rule has it.

        Raises:
            ValueError: an eps outside [0, eps_g].
        """
        wanted = np.asarray(epsilons, dtype=np.float64)
        if wanted.size and (wanted.min() < 0 or wanted.max() > self.epsilons[-1]):
            raise ValueError(f"Accuracies are known for eps in [0, {format_eps(self.epsilons[-1])}], got {epsilons!r}.")
        if self.protocol == "exact":
            return (_as_array(self.smallest_epsilons)[:, None] > wanted).mean(0).tolist()
        return np.interp(wanted, self.epsilons, self.accuracies).tolist()

    def __str__(self) -> str:
        eps = format_eps(self.epsilons[-1])
        rows = [
            ("clean_accuracy", self.clean_accuracy, ""),
            ("adversarial_accuracy", self.adversarial_accuracy, f"at {self.threat_model['norm']} {eps}"),
            ("expected_robustness", self.expected_robustness, f"mean accuracy over eps in [0, {eps}]"),
        ]
        if self.autoattack_accuracy is not None:
            where = f"at {self.threat_model['norm']} {eps}, {self.autoattack_set}"
            rows.append(("autoattack_accuracy", self.autoattack_accuracy, where))
        lines = []
        for key, value, meaning in rows:
            low, high = self.confidence_intervals.get(key, (None, None))
            interval = "" if low is None else f"   [{low:.1%}, {high:.1%}]"
            lines.append(f"{key.replace('_', ' '):<22} {value:7.2%}{interval}   {meaning}".rstrip())
        for name, value in self.distributions.items():
            lines.append(f"{'expected robustness':<22} {value:7.2%}   for eps ~ {name}")
        lines.append(f"{'reliability':<22} {short_verdict(self.reliability)}")
        if told := convergence_sentence(self.convergence):
            lines.append(told)
        return "\n".join([*lines, *self._precision_lines()])

    def class_table(self) -> str:
        """The scores by class as lines of text."""
        names = [one_line(row["class"]) for row in self.per_class]
        width = max(map(len, names))
        lines = [f"{'class':<{width}}  images    clean  adversarial  expected"]
        for name, row in zip(names, self.per_class, strict=True):
            clean, adversarial, expected = (
                row[key] for key in ("clean_accuracy", "adversarial_accuracy", "expected_robustness")
            )
            lines.append(f"{name:<{width}}  {row['samples']:6}  {clean:7.1%}  {adversarial:11.1%}  {expected:8.1%}")
        return "\n".join(lines)

    @property
    def autoattack_set(self) -> str:
        """AutoAttack's images in words, "100 images drawn at random"."""
        count = self.autoattack_samples
        return f"{count} images drawn at random" if self.autoattack_images else f"{count} images, the first of the data"


def _as_array(smallest_epsilons: Sequence[float | None]) -> np.ndarray:
    return np.array([np.inf if eps is None else eps for eps in smallest_epsilons])
