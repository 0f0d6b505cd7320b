"""What was measured of a segmentation model's robustness, and how."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_robust_ft.attacks.threat_model import format_eps
from hf_robust_ft.evaluation.reliability import short_verdict
from hf_robust_ft.evaluation.segmentation.convergence import segmentation_convergence_sentence
from hf_robust_ft.evaluation.segmentation.reliability import segmentation_reliability
from hf_robust_ft.evaluation.trust_verdicts import TrustCheck, summary
from hf_robust_ft.provenance.facts import RunFacts
from hf_robust_ft.provenance.plain_text import one_line

SCHEMA_VERSION = 1
TASK = "image-segmentation"
METHOD = "bootstrap over images and one more"


@dataclass(frozen=True)
class SegmentationReport:
    """What was measured and how. Scores lie in [0, 1]; every eps is in pixel units of [0, 1].

    Pixel accuracy is the share of all labelled pixels that are right; mean IoU is of the intersections and unions of
    all images, over the classes labelled or predicted somewhere.

    Attributes:
        clean_pixel_accuracy, clean_mean_iou: at eps = 0.
        adversarial_pixel_accuracy, adversarial_mean_iou: at the largest eps.
        expected_pixel_accuracy, expected_mean_iou: the mean over eps in [0, eps_g].
        epsilons: the grid, increasing from 0 to eps_g.
        pixel_accuracies, mean_ious: at each of them. Each is a worst case of its own over what the attacks found.
        threat_model: {"norm": ..., "eps": ...}.
        attacks: settings of the attacks, `APGD`'s fields; with converged steps, those of the last round.
        protocol: a key of `SEGMENTATION_PROTOCOLS`.
        num_samples: images evaluated.
        num_classes: that the model tells apart.
        ignore_index: the label of the pixels that did not count.
        confidence_intervals: 95 % intervals over the images, [low, high], of each score and of each point of a curve;
            by which "method". They tell what other images would change, not what a stronger attack would.
        per_class: IoU and labelled pixels of each class, in the worst case for mean IoU.
        checks: what tells whether the figures can be trusted (`trust_verdicts.TrustCheck`'s fields).
        convergence: with `attack_steps="auto"` the `limit` of steps, whether both scores have `settled`, and `rounds`:
            per number of steps both curves and their scores. All other figures are those after the last round. Empty
            where the steps were fixed.
        image_hashes: per image, 16 hex digits of its pixels as evaluated.
        image_digest: 16 hex digits for all of them, whatever their order.
        passes: images in all `forwards` and `gradients` of the attacks (trust checks apart).
        metadata: what else the writer knew (model, dataset, training settings, versions), any mapping.
        task: "image-segmentation", the Hub's pipeline tag.
        schema_version: of this record as a file.
        reliability: {"verdict": "ok" or "doubtful", "reasons": [...]}; it follows from the rest, and whatever is given,
            or read from a file, is replaced.
    """

    clean_pixel_accuracy: float
    adversarial_pixel_accuracy: float
    expected_pixel_accuracy: float
    clean_mean_iou: float
    adversarial_mean_iou: float
    expected_mean_iou: float
    epsilons: list[float]
    pixel_accuracies: list[float]
    mean_ious: list[float]
    threat_model: dict[str, Any]
    attacks: list[dict[str, Any]]
    protocol: str
    num_samples: int
    num_classes: int
    ignore_index: int | None = None
    confidence_intervals: dict[str, Any] = field(default_factory=dict)
    per_class: list[dict[str, Any]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    convergence: dict[str, Any] = field(default_factory=dict)
    image_hashes: list[str] = field(default_factory=list)
    image_digest: str = ""
    passes: dict[str, int] = field(default_factory=dict, compare=False)  # what it cost is no result
    metadata: RunFacts = field(default_factory=RunFacts)
    task: str = TASK
    schema_version: int = SCHEMA_VERSION
    reliability: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "metadata", RunFacts().merged(self.metadata))
        object.__setattr__(self, "reliability", segmentation_reliability(self))

    def to_json(self, path: str | Path) -> None:
        """Write the report; `from_json` reads it back equal."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**dataclasses.asdict(self), "metadata": dict(self.metadata)}

    @classmethod
    def from_json(cls, path: str | Path) -> "SegmentationReport":
        """Read a report.

        Raises:
            ValueError: the file is no JSON, is of another task, holds other keys or values than such a report's, or is
                of a newer version.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is no JSON file: {error}.") from None
        if not isinstance(content, dict) or content.get("task") != TASK:
            raise ValueError(
                f"{path} is no report of {TASK} (its key 'task' says so). A classifier's is read by "
                "RobustnessReport.from_json."
            )
        version = content.get("schema_version")
        if not isinstance(version, int) or version > SCHEMA_VERSION:
            raise ValueError(
                f"{path} is a report of schema_version {version!r}, this package reads those up to {SCHEMA_VERSION}: "
                "pip install --upgrade hf_robust_ft."
            )
        try:
            return cls(**content)
        except (AttributeError, LookupError, TypeError) as error:
            raise ValueError(f"{path} is no report of {TASK}: {type(error).__name__}: {error}.") from None

    def with_metadata(self, **metadata: Any) -> "SegmentationReport":
        """The same measurement with more said about it; None forgets a fact."""
        return dataclasses.replace(self, metadata=self.metadata.merged(metadata))

    def __str__(self) -> str:
        eps, norm = format_eps(self.epsilons[-1]), self.threat_model["norm"]
        lines = []
        for when, where in (
            ("clean", ""),
            ("adversarial", f"at {norm} {eps}"),
            ("expected", f"mean over eps in [0, {eps}]"),
        ):
            for name in ("pixel_accuracy", "mean_iou"):
                low, high = self.confidence_intervals.get(f"{when}_{name}", (None, None))
                shown = "" if low is None else f"   [{low:.1%}, {high:.1%}]"
                label = f"{when} {name.replace('_', ' ').replace('iou', 'IoU')}"
                lines.append(f"{label:<28} {getattr(self, f'{when}_{name}'):7.2%}{shown}   {where}".rstrip())
        lines.append(f"{'reliability':<28} {short_verdict(self.reliability)}")
        if told := segmentation_convergence_sentence(self.convergence):
            lines.append(told)
        if precision := self.metadata.evaluated_in:
            lines.append(
                f"measured in {precision}: attacks find fewer errors than in fp32, robust figures may be too high"
            )
        return "\n".join(lines)

    def class_table(self) -> str:
        """The IoUs by class as lines of text."""
        names = [one_line(row["class"]) for row in self.per_class]
        width = max(map(len, [*names, "class"]))
        lines = [f"{'class':<{width}}      pixels  clean IoU  adversarial  expected"]
        for name, row in zip(names, self.per_class, strict=True):
            clean, adversarial, expected = (row[f"{when}_iou"] for when in ("clean", "adversarial", "expected"))
            pixels = row["labelled_pixels"]
            lines.append(f"{name:<{width}}  {pixels:10}  {clean:9.1%}  {adversarial:11.1%}  {expected:8.1%}")
        return "\n".join(lines)

    def check_lines(self) -> str:
        """The trust checks, a line each."""
        return summary([TrustCheck(**check) for check in self.checks])
