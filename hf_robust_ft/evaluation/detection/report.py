"""What was measured of a detection model's robustness, and how."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_robust_ft.attacks.threat_model import format_eps
from hf_robust_ft.provenance.facts import RunFacts

SCHEMA_VERSION = 1
TASK = "object-detection"
LIMITS = (
    "Experimental: one attack, on the model's own loss, which need not be what lowers mAP most; no trust checks and no "
    "confidence intervals. Every figure under attack is an upper bound: measure with more steps before it is believed."
)


@dataclass(frozen=True)
class DetectionReport:
    """What was measured and how; experimental. Scores lie in [0, 1]; every eps is in pixel units of [0, 1].

    `map` is COCO's box mAP: over classes, and over IoU thresholds from 0.5 to 0.95; `map_50` is at IoU 0.5. Both are
    over all images, at the size that the model sees.

    Attributes:
        clean_map, clean_map_50: at eps = 0.
        adversarial_map, adversarial_map_50: at the largest eps.
        expected_map, expected_map_50: the mean over eps in [0, eps_g].
        epsilons: the grid, increasing from 0 to eps_g.
        maps, maps_50: at each of them, the lowest so far.
        losses: the model's own loss at each of them, the mean over images, each as a batch of one.
        threat_model: {"norm": ..., "eps": ...}.
        attack: settings of the attack, `APGD`'s fields.
        num_samples: images evaluated.
        num_boxes: labelled in them.
        num_classes: that the model tells apart.
        image_hashes: per image, 16 hex digits of its pixels as evaluated.
        image_digest: 16 hex digits for all of them, whatever their order.
        passes: images in all `forwards` and `gradients` of the attacks.
        metadata: what else the writer knew (model, dataset, training settings, versions), any mapping.
        limits: what these figures do not tell; it is always the same.
        task: "object-detection", the Hub's pipeline tag.
        schema_version: of this record as a file.
    """

    clean_map: float
    adversarial_map: float
    expected_map: float
    clean_map_50: float
    adversarial_map_50: float
    expected_map_50: float
    epsilons: list[float]
    maps: list[float]
    maps_50: list[float]
    losses: list[float]
    threat_model: dict[str, Any]
    attack: dict[str, Any]
    num_samples: int
    num_boxes: int
    num_classes: int
    image_hashes: list[str] = field(default_factory=list)
    image_digest: str = ""
    passes: dict[str, int] = field(default_factory=dict, compare=False)  # what it cost is no result
    metadata: RunFacts = field(default_factory=RunFacts)
    limits: str = LIMITS
    task: str = TASK
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self):
        object.__setattr__(self, "metadata", RunFacts().merged(self.metadata))
        object.__setattr__(self, "limits", LIMITS)

    def to_json(self, path: str | Path) -> None:
        """Write the report; `from_json` reads it back equal."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**dataclasses.asdict(self), "metadata": dict(self.metadata)}

    @classmethod
    def from_json(cls, path: str | Path) -> "DetectionReport":
        """Read a report.

        Raises:
            ValueError: the file is no JSON, is of another task, holds other keys than such a report's, or is of a newer
                version.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is no JSON file: {error}.") from None
        if not isinstance(content, dict) or content.get("task") != TASK:
            raise ValueError(f"{path} is no report of {TASK} (its key 'task' says so).")
        version = content.get("schema_version")
        if not isinstance(version, int) or version > SCHEMA_VERSION:
            raise ValueError(
                f"{path} is a report of schema_version {version!r}, this package reads those up to {SCHEMA_VERSION}: "
                "pip install --upgrade hf_robust_ft."
            )
        try:
            return cls(**content)
        except TypeError as error:
            raise ValueError(f"{path} is no report of {TASK}: {error}.") from None

    def with_metadata(self, **metadata: Any) -> "DetectionReport":
        """The same measurement with more said about it; None forgets a fact."""
        return dataclasses.replace(self, metadata=self.metadata.merged(metadata))

    def __str__(self) -> str:
        eps, norm = format_eps(self.epsilons[-1]), self.threat_model["norm"]
        lines = [f"{'':<14}   box mAP   mAP at IoU 0.5"]
        for when, where in (
            ("clean", ""),
            ("adversarial", f"at {norm} {eps}"),
            ("expected", f"mean over eps in [0, {eps}]"),
        ):
            first, second = (getattr(self, f"{when}_{name}") for name in ("map", "map_50"))
            lines.append(f"{when:<14}   {first:7.2%}   {second:7.2%}          {where}".rstrip())
        return "\n".join(lines)
