"""What an evaluation of a detector does with each batch, whoever runs it, and what it makes of all of them."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hf_robust_ft.attacks.detector import PixelDetector
from hf_robust_ft.attacks.pass_meter import PassMeter
from hf_robust_ft.evaluation.detection.average_precision import AveragePrecision, BoxScores
from hf_robust_ft.evaluation.detection.boxes import detected_boxes, labelled_boxes
from hf_robust_ft.evaluation.detection.report import DetectionReport
from hf_robust_ft.evaluation.detection.settings import DetectionSettings
from hf_robust_ft.metrics.robustness.curve import expected_robustness
from hf_robust_ft.provenance.image_hashes import as_hex, combined_hash, hash_images


@dataclass
class DetectionMeasurement:
    """Attacks batches at every eps, and scores the boxes found there.

    An image found at an eps is kept at a larger one, unless the attack there finds a higher loss: it lies in that ball,
    too.

    Args:
        settings: of the evaluation.
        num_labels: K, the classes of the model.
        attacks: whether any attack is run; without, only clean images count.
    """

    settings: DetectionSettings
    num_labels: int
    attacks: bool = True
    hashes: list[str] = field(default_factory=list)
    passes: tuple[int, int] = (0, 0)
    num_boxes: int = 0

    def __post_init__(self):
        self.epsilons = self.settings.epsilons if self.attacks else [0.0]
        self._scores = [AveragePrecision() for _ in self.epsilons]
        self._losses = [0.0] * len(self.epsilons)

    def measure(
        self, detector: PixelDetector, pixels: Tensor, generator: torch.Generator | None = None, outputs: Any = None
    ) -> None:
        """Attack one batch, in attack mode.

        Args:
            detector: with the labels of the batch.
            pixels: (N, C, H, W) in [0, 1].
            generator: of random starts.
            outputs: of the model for these pixels, if known.
        """
        size, labelled = tuple(pixels.shape[-2:]), labelled_boxes(detector.labels, tuple(pixels.shape[-2:]))
        with torch.no_grad():
            outputs = detector.detect(pixels) if outputs is None else outputs
        self._scores[0].update(detected_boxes(outputs, self.num_labels, size), labelled)
        unused = torch.zeros(len(pixels), dtype=torch.int64, device=pixels.device)  # the detector knows the labels
        found, highest = pixels, None
        with PassMeter(detector) as meter:
            for index, eps in enumerate(self.epsilons if self.attacks else ()):
                result = self.settings.attack(
                    detector, pixels, unused, self.settings.threat_model, eps=eps, generator=generator
                )
                better = torch.ones_like(unused, dtype=torch.bool) if highest is None else result.loss > highest
                found = torch.where(better[:, None, None, None], result.adversarial, found)
                highest = result.loss if highest is None else torch.where(better, result.loss, highest)
                self._losses[index] += float(highest.sum())
                if index > 0:
                    with torch.no_grad():
                        outputs = detector.detect(found)
                    self._scores[index].update(detected_boxes(outputs, self.num_labels, size), labelled)
        self.passes = self.passes[0] + meter.forwards, self.passes[1] + meter.gradients
        self.hashes += as_hex(hash_images(pixels))
        self.num_boxes += sum(len(each["boxes"]) for each in labelled)

    @property
    def clean(self) -> BoxScores:
        """Before any attack."""
        return self._scores[0].compute()

    def report(self, metadata: Mapping[str, Any] | None = None) -> DetectionReport:
        """Of all batches so far.

        Raises:
            ValueError: no image has a labelled box.
        """
        curves: dict[str, Any] = {}
        at_each = [scores.compute() for scores in self._scores]
        for name, plural in (("map", "maps"), ("map_50", "maps_50")):
            lowest: list[float] = []
            for scores in at_each:  # the images of a smaller eps are there for the larger one, too
                lowest.append(min([getattr(scores, name), *lowest[-1:]]))
            curves |= {plural: lowest, f"clean_{name}": lowest[0], f"adversarial_{name}": lowest[-1]}
            curves[f"expected_{name}"] = expected_robustness(lowest, self.epsilons)
        return DetectionReport(
            **curves,
            epsilons=list(self.epsilons),
            losses=[total / max(len(self.hashes), 1) for total in self._losses],
            threat_model={"norm": self.settings.threat_model.norm, "eps": self.settings.threat_model.eps},
            attack=dataclasses.asdict(self.settings.attack),
            num_samples=len(self.hashes),
            num_boxes=self.num_boxes,
            num_classes=self.num_labels,
            image_hashes=list(self.hashes),
            image_digest=combined_hash(self.hashes),
            passes=dict(zip(("forwards", "gradients"), self.passes, strict=True)),
            metadata=metadata or {},
        )
