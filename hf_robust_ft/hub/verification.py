"""Whether a report is true as far as its stored examples tell: the model is run on them, and nothing is attacked.

Each image that the report counts as fooled must come with a point in its ball that the model gets wrong. That proves
the robustness to be no higher than reported; how much lower it is, only a stronger attack could tell.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_robust_ft.attacks import attack_mode, fast_memory_format
from hf_robust_ft.attacks.autoattack import TOLERANCE
from hf_robust_ft.attacks.pixels import PixelClassifier, PixelSpace
from hf_robust_ft.attacks.threat_model import ThreatModel, format_eps
from hf_robust_ft.evaluation.batches import NumberedBatches
from hf_robust_ft.evaluation.classifier import as_classifier
from hf_robust_ft.evaluation.output_checks import range_of_top_two
from hf_robust_ft.evaluation.protocols import RECOMMENDED, evaluation_attack
from hf_robust_ft.evaluation.reliability import is_reliable
from hf_robust_ft.evaluation.report import RobustnessReport
from hf_robust_ft.evaluation.scoring import build_report
from hf_robust_ft.evaluation.stored_examples import Examples, StoredExamples
from hf_robust_ft.evaluation.trust_verdicts import TOLERATED_SHARE, is_tolerated
from hf_robust_ft.provenance.image_hashes import as_hex, combined_hash, hash_images
from hf_robust_ft.reporting.consistency import ROUNDING, check_consistent

# A class that leads by less than this share of the range of all images' top two logits may lose to the rounding of
# another device. The other classes' logits are no measure: a model may hold one at -1e5, or at minus infinity.
LEAD = 1e-4
SHOWN = 3  # faults that a sentence names


@dataclass(frozen=True)
class Verified:
    """One check.

    Attributes:
        name: "files", "complete", "images", "labels", "range", "ball", "misclassified", "undecided", "clean accuracy",
            "scores".
        passed: whether the report stands it.
        sentence: what was found; of a failure, what is wrong with which images.
    """

    name: str
    passed: bool
    sentence: str

    def __str__(self) -> str:
        return f"{'ok    ' if self.passed else 'FAILED'} {self.name:<15} {self.sentence}"


def verify_report(
    model: nn.Module,
    dataset_or_loader: Any,
    report: RobustnessReport,
    examples: str | Path,
    *,
    pixel_space: PixelSpace | None = None,
    batch_size: int = 64,
    device: torch.device | str | None = None,
) -> list[Verified]:
    """Run a model on the images and on the examples that an evaluation stored, and compare with its report.

    Args:
        model, dataset_or_loader, pixel_space, device: as in `evaluate_robustness`; the images in the same order. A
            loader must read a map-style dataset in its order.
        report: what is to be verified.
        examples: the folder of its examples (`evaluate_robustness(..., examples_dir=...)`).
        batch_size: images at a time, when given a dataset.

    Raises:
        ExamplesUnreadable: the folder holds no index of examples.
        ValueError: the report tells no hashes of its images or holds no eps of each, or what `evaluate_robustness`
            refuses of model and data.
    """
    if not report.image_hashes or len(report.smallest_epsilons) != report.num_samples:
        raise ValueError(
            "The report does not tell which images it is of, or not what fooled each (image_hashes, "
            "smallest_epsilons): it is of an older version. Evaluate again: hf-robust-ft evaluate --protocol "
            f"{RECOMMENDED} --output_dir DIR --store_examples."
        )
    stored = StoredExamples(examples)
    classifier, pixel_space = as_classifier(model, pixel_space)
    batches = NumberedBatches(dataset_or_loader, batch_size, repeatable=True)
    if not batches.looks_up:
        raise ValueError("verify_report looks up single images: give it a map-style dataset.")
    if device is not None:
        classifier.to(device)
    with attack_mode(classifier), fast_memory_format(classifier):
        work = _Verification(classifier, pixel_space, batches, report)
        work.see_images()
        unreadable: list[str] = []
        for found in stored.batches(unreadable):
            work.see_examples(found)
    files = Verified("files", not unreadable, " ".join(unreadable) or f"{len(stored.shards)}, as they were written")
    return [files, *work.verdicts(stored.image_digest)]


class _Verification:
    """What was seen of images and examples, and what is wrong with them."""

    def __init__(
        self, classifier: PixelClassifier, space: PixelSpace, batches: NumberedBatches, report: RobustnessReport
    ):
        self.classifier, self.space, self.batches, self.report = classifier, space, batches, report
        self.threat_model = ThreatModel(**report.threat_model)
        self.device = next((parameter.device for parameter in classifier.parameters()), torch.device("cpu"))
        self.smallest = [np.inf if eps is None else float(eps) for eps in report.smallest_epsilons]
        self.labels: list[int] = []
        self.hashes: list[str] = []
        self.right = 0  # images, as they are
        self.seen: set[int] = set()
        self.faults: dict[str, list[str]] = {}
        self.furthest, self.in_doubt, self.logit_range = 0.0, 0, 0.0

    def _wrong(self, name: str, sentence: str) -> None:
        self.faults.setdefault(name, []).append(sentence)

    def _pixels(self, batch: Any) -> Tensor:
        return self.space.clipped_pixels(batch["pixel_values"].to(self.device))

    def _judge(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Whether images (N, C, H, W) are classified rightly, and whether that is beyond rounding; both (N,) bool."""
        with torch.no_grad():
            logits = self.classifier(pixels).double()
        self.logit_range = max(self.logit_range, range_of_top_two(logits))
        best, second = logits.topk(2, dim=1).values.unbind(1)
        sure = best - second > LEAD * self.logit_range
        return (logits.argmax(1) == labels).cpu(), sure.cpu()

    def see_images(self) -> None:
        for _, first, batch in self.batches.of_process():
            pixels, labels = self._pixels(batch), batch["labels"].to(self.device)
            self.hashes += as_hex(hash_images(pixels))
            self.labels += labels.tolist()
            for place, (right, sure) in enumerate(zip(*self._judge(pixels, labels), strict=True), start=first):
                self.right += bool(right)
                if place < len(self.smallest) and bool(right) != (self.smallest[place] > 0):
                    told = "wrong" if right else "right"
                    if sure:
                        self._wrong("clean accuracy", f"image {place}, {told} in the report, is not")
                    else:
                        self.in_doubt += 1

    def see_examples(self, found: Examples) -> None:
        known = (found.index >= 0) & (found.index < min(len(self.labels), len(self.smallest)))
        for index in found.index[~known].tolist():
            self._wrong("images", f"an example is of image {index}, and there are {len(self.labels)}")
        found = found.rows(known)
        places = found.index.tolist()
        if not places:
            return
        self.seen.update(places)
        pixels = torch.cat([self._pixels(batch) for _, batch in self.batches.examples(places)])
        if found.adversarial.shape != pixels.shape:
            shapes = [tuple(each.shape[1:]) for each in (found.adversarial, pixels)]
            self._wrong("images", f"examples of shape {shapes[0]} are of images of shape {shapes[1]}")
            return
        for place, image_hash, label in zip(places, as_hex(found.image_hash), found.label.tolist(), strict=True):
            if image_hash != self.hashes[place]:
                self._wrong("images", f"the example of image {place} is of {image_hash}, not {self.hashes[place]}")
            if label != self.labels[place]:
                self._wrong("labels", f"image {place} is of class {self.labels[place]}, its example of {label}")
        self._see_points(found.adversarial.to(self.device), pixels, places)

    def _see_points(self, adversarial: Tensor, pixels: Tensor, places: Sequence[int]) -> None:
        eps_g, norm = self.threat_model.eps, self.threat_model.norm
        # Where the report has the image standing, it is what AutoAttack found.
        eps = torch.tensor([min(self.smallest[place], eps_g) for place in places], dtype=torch.float64)
        distance = self.threat_model.ball(pixels.double()).distance(adversarial.double()).cpu()
        flat = adversarial.flatten(1)
        in_range = ((flat >= -TOLERANCE) & (flat <= 1 + TOLERANCE)).all(1).cpu()
        labels = torch.tensor([self.labels[place] for place in places], device=self.device)
        right, sure = self._judge(adversarial, labels)
        self.furthest = max(self.furthest, (distance / eps.clamp(min=1e-12)).max().item())
        for row, place in enumerate(places):
            if not in_range[row]:
                low, high = flat[row].min().item(), flat[row].max().item()
                self._wrong("range", f"the example of image {place} has pixels from {low:.6g} to {high:.6g}")
            if not distance[row] <= eps[row] + TOLERANCE * max(1.0, eps_g):
                allowed = f"{format_eps(eps[row].item())} ({eps[row]:.6g})"
                self._wrong("ball", f"the example of image {place} is at {norm} {distance[row]:.6g}, its eps {allowed}")
            if right[row] and sure[row]:
                self._wrong("misclassified", f"the example of image {place} is classified correctly")
            elif right[row]:
                self.in_doubt += 1

    def verdicts(self, stored_digest: str) -> list[Verified]:
        report = self.report
        self._compare_images(stored_digest)
        fallen = {place for place, eps in enumerate(self.smallest) if 0 < eps < np.inf}
        for place in sorted(fallen - self.seen):
            self._wrong("complete", f"image {place} falls at {format_eps(self.smallest[place])}, and has no example")
        clean = self.right / max(1, len(self.labels))
        if abs(clean - report.clean_accuracy) > ROUNDING + self.in_doubt / max(1, len(self.labels)):
            told = f"{report.clean_accuracy:.2%} in the report, {clean:.2%} found"
            self.faults["clean accuracy"] = [told, *self.faults.get("clean accuracy", [])]
        self._compare_scores()
        count, mark = f"{len(self.seen)} examples", "" if is_reliable(report) else " (doubtful)"
        undecided = (
            f"{self.in_doubt} predictions on {len(self.labels)} images and {count} differ from the report within "
            f"rounding; one may, or {TOLERATED_SHARE:.0%} of the images"
        )
        if not is_tolerated(self.in_doubt, max(1, len(self.labels))):
            self._wrong("undecided", undecided)
        sentences = {
            "complete": f"an example for each of the {len(fallen)} images that fall",
            "images": f"{len(self.hashes)}, the same as in report and examples",
            "labels": f"of {count}, the data's",
            "range": f"{count} within [0, 1]",
            "ball": f"{count} within {self.threat_model.norm} balls of own eps, at most {self.furthest:.4f} of it",
            "misclassified": count,
            "undecided": undecided,
            "clean accuracy": f"{clean:.2%}, as reported",
            "scores": f"adversarial accuracy {report.adversarial_accuracy:.2%}{mark} and the others follow from them",
        }
        return [
            Verified(name, name not in self.faults, _told(self.faults[name]) if name in self.faults else sentence)
            for name, sentence in sentences.items()
        ]

    def _compare_images(self, stored_digest: str) -> None:
        told = self.report.image_hashes
        if len(told) != len(self.hashes):
            self._wrong("images", f"the data have {len(self.hashes)}, the report {len(told)}")
        for place, (mine, theirs) in enumerate(zip(self.hashes, told, strict=False)):
            if mine != theirs:
                self._wrong("images", f"image {place} is {mine}, in the report {theirs}")
        digest = combined_hash(told)
        for source, given in (("the report", self.report.image_digest), ("the examples' index", stored_digest)):
            if given != digest:
                self._wrong(
                    "images", f"{source} names the set {given or 'of none'}, and the report's hashes make {digest}"
                )

    def _compare_scores(self) -> None:
        report = self.report
        try:
            check_consistent(report)
        except ValueError as error:
            self._wrong("scores", str(error))
        if len(self.labels) != report.num_samples:
            self._wrong("scores", f"they are of {report.num_samples} images, the data have {len(self.labels)}")
            return
        follows = build_report(
            self.labels, self.smallest, [label + 1 for label in self.labels], threat_model=self.threat_model,
            epsilons=report.epsilons, attack=evaluation_attack(), protocol=report.protocol,
            distributions=list(report.distributions),
        )  # fmt: skip
        for name in ("clean_accuracy", "adversarial_accuracy", "expected_robustness", "accuracies", "distributions"):
            told, right = getattr(report, name), getattr(follows, name)
            if not _is_close(told, right):
                self._wrong(
                    "scores", f"{name.replace('_', ' ')} is {_short(told)}, and the images make {_short(right)}"
                )
        for told, right in zip(report.per_class, follows.per_class, strict=False):
            if not _is_close({**told, "class": 0}, {**right, "class": 0}):
                self._wrong("scores", f"class {told['class']} differs from what its images make")
        by_autoattack = sum(self.smallest[place] == np.inf for place in self.seen)
        allowed = report.autoattack_samples * (1 - (report.autoattack_accuracy if report.autoattack_samples else 1))
        if by_autoattack > allowed + ROUNDING:
            self._wrong("scores", f"{by_autoattack} images that stand in the report have an example")


def _told(faults: Sequence[str]) -> str:
    more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    return "; ".join(faults[:SHOWN]) + more


def _is_close(told: Any, right: Any) -> bool:
    if isinstance(right, dict):
        return (
            isinstance(told, dict) and told.keys() == right.keys() and all(_is_close(told[k], right[k]) for k in right)
        )
    if isinstance(right, list):
        return isinstance(told, list) and len(told) == len(right) and all(map(_is_close, told, right))
    return isinstance(told, (int, float)) and abs(told - right) <= ROUNDING


def _short(value: Any) -> str:
    return f"{value:.6f}" if isinstance(value, float) else str(value)
