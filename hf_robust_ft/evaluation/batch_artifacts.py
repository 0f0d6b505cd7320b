"""What an evaluation keeps of a batch for others to check: which images, what it cost, whether it is found again."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_robust_ft.attacks.pass_meter import PassMeter
from hf_robust_ft.attacks.pixels import PixelClassifier
from hf_robust_ft.evaluation.stored_examples import ExampleFolder, Examples
from hf_robust_ft.provenance.image_hashes import as_hex, hash_images

# An entry per image: its hash; whether its example was misclassified again, None without one. And per batch and round
# the images of all forwards and gradients.
EVIDENCE_KEYS = ("image_hashes", "found_again", "passes")


def misclassified_again(
    classifier: PixelClassifier, examples: Tensor, labels: Tensor, in_halves: bool = True
) -> Tensor:
    """Whether examples (N, C, H, W) are still misclassified in other batches than those they were found in, (N,) bool.

    Predictions that depend on an image's batch, or are random, are not the same in these.

    Args:
        in_halves: every other image at a time; else all together.
    """
    predictions = torch.empty_like(labels)
    parts = (slice(None, None, 2), slice(1, None, 2)) if in_halves else (slice(None),)
    with torch.no_grad():
        for part in parts:
            if len(labels[part]):
                predictions[part] = classifier(examples[part]).argmax(1)
    return predictions != labels


class BatchEvidence:
    """The evidence of one batch.

    Args:
        classifier: what is measured.
        pixels: (N, C, H, W) in [0, 1].
        labels: (N,).
        first: the index of the first image.
        before: what is kept of it from earlier rounds.
    """

    def __init__(
        self,
        classifier: PixelClassifier,
        pixels: Tensor,
        labels: Tensor,
        first: int,
        before: Mapping[str, Any] | None = None,
    ):
        self.classifier, self.pixels, self.labels, self.first = classifier, pixels, labels, first
        self.before = before or {}
        self.meter = PassMeter(classifier)

    def of(
        self,
        record: Mapping[str, Any],
        adversarial: Tensor,
        eps_g: float,
        folder: ExampleFolder | None,
        where: tuple[int, int],
    ) -> dict[str, Any]:
        """What is kept besides the `record`, of which "smallest_eps" and "wrong_classes" are read.

        Args:
            adversarial: (N, C, H, W), the image itself where this round found nothing.
            eps_g: the largest eps, in whose ball lies what AutoAttack found where the protocol found nothing.
            folder: where the examples are stored; None stores none.
            where: the numbers of batch and round.
        """
        hashes, eps = hash_images(self.pixels), _as_tensor(record["smallest_eps"])
        earlier = _as_tensor(self.before.get("smallest_eps", [None] * len(eps)))
        changed = (adversarial != self.pixels).flatten(1).any(1).cpu()
        rows = (((eps > 0) & (eps < earlier)) | changed).nonzero()[:, 0]
        found, labels = adversarial[rows.to(adversarial.device)], self.labels[rows.to(self.labels.device)]
        again: list[bool | None] = list(self.before.get("found_again", [None] * len(eps)))
        for row, wrong in zip(rows.tolist(), misclassified_again(self.classifier, found, labels).tolist(), strict=True):
            again[row] = wrong
        kept = {
            "image_hashes": as_hex(hashes),
            "found_again": again,
            "passes": [*self.before.get("passes", []), [self.meter.forwards, self.meter.gradients]],
        }
        if folder is None:
            return kept
        shards = list(self.before.get("examples", []))
        if len(rows):
            examples = Examples(
                adversarial=found.float(),
                index=self.first + rows,
                label=labels,
                prediction=torch.tensor(record["wrong_classes"])[rows],
                eps=eps.clamp(max=eps_g)[rows],
                image_hash=hashes[rows],
            )
            shards.append(folder.write(*where, examples))
        return {**kept, "examples": shards}


def _as_tensor(smallest_eps: Sequence[float | None]) -> Tensor:
    return torch.tensor([torch.inf if eps is None else eps for eps in smallest_eps], dtype=torch.float64)
