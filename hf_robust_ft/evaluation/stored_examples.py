"""The adversarial examples of an evaluation on disk, for others to check its numbers without any attack.

A file each batch and round, and an index of them once all are there. A later round's example of an image takes the
place of an earlier one's:

    batch-000012.round-0.safetensors   adversarial (M, C, H, W) float32, index, label, prediction int64, eps float64
                                       (all (M,)), image_hash (M, 8) uint8
    examples.json                      {"format": 1, "shards": {"<name>": "<sha256>", ...}, "image_digest": "..."}
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from hf_robust_ft.provenance.atomic import write_whole

FORMAT = 1
STORED_EXAMPLES = "adversarial_examples"  # the folder, beside the report
INDEX_NAME = "examples.json"
_SHARD = re.compile(r"batch-(\d{6,})\.round-(\d+)\.safetensors")


@dataclass(frozen=True)
class Examples:
    """Misclassified points of M images.

    Attributes:
        adversarial: (M, C, H, W) float32 pixels in [0, 1].
        index: (M,) int64, the image's place in the evaluation.
        label: (M,) int64, its right class.
        prediction: (M,) int64, the class predicted for the example.
        eps: (M,) float64, the smallest eps that the report names for it, in pixel units of [0, 1]: the example lies in
            the ball of this radius around the image.
        image_hash: (M, 8) uint8, the image's hash (`image_hashes.hash_images`).
    """

    adversarial: Tensor
    index: Tensor
    label: Tensor
    prediction: Tensor
    eps: Tensor
    image_hash: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def rows(self, keep: Tensor) -> "Examples":
        return Examples(*(getattr(self, entry.name)[keep] for entry in fields(self)))


class ExamplesUnreadable(ValueError):
    """Stored examples that are missing, damaged or not those of the index; the message names the file."""


class ExampleFolder:
    """Where an evaluation keeps its examples; created if need be.

    Under torchrun each process writes the files of its own batches, and the main process the index.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"Examples cannot be kept in {self.folder}, which is a file: give a folder.")
        self.folder.mkdir(parents=True, exist_ok=True)

    def write(self, batch: int, round_number: int, examples: Examples) -> list[str]:
        """Write the examples that a round found for a batch; when this returns they are on the disk.

        Returns:
            [name, sha256] of the file.
        """
        name = f"batch-{batch:06d}.round-{round_number}.safetensors"
        tensors = {entry.name: getattr(examples, entry.name).cpu().contiguous() for entry in fields(examples)}
        content = save(tensors, {"format": str(FORMAT)})
        write_whole(self.folder / name, content)
        return [name, hashlib.sha256(content).hexdigest()]

    def holds(self, shards: list[list[str]]) -> bool:
        """Whether the files are there as they were written."""
        paths = [(self.folder / name, sha256) for name, sha256 in shards]
        return all(path.is_file() and _sha256(path) == sha256 for path, sha256 in paths)

    def finish(self, shards: Mapping[str, str], **facts: Any) -> None:
        """Write the index, and remove the files of an earlier evaluation in this folder."""
        content = json.dumps({"format": FORMAT, "shards": dict(sorted(shards.items())), **facts}, indent=1)
        write_whole(self.folder / INDEX_NAME, content.encode() + b"\n")
        for path in self.folder.iterdir():
            if _SHARD.fullmatch(path.name) and path.name not in shards:
                path.unlink()


class StoredExamples:
    """Examples to be read, one for each image at most.

    Args:
        folder: that `ExampleFolder` filled.

    Attributes:
        folder, shards: where they are, and {name: sha256}.
        image_digest: of all images of the evaluation (`image_hashes.combined_hash`).

    Raises:
        ExamplesUnreadable: there is no index, or it is none.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        path = self.folder / INDEX_NAME
        if not path.is_file():
            raise ExamplesUnreadable(
                f"There are no stored examples in {self.folder} (it has no {INDEX_NAME}): evaluate with "
                "--store_examples (in Python examples_dir=)."
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            self.shards = {str(name): str(sha256) for name, sha256 in content["shards"].items()}
            self.image_digest = str(content["image_digest"])
            known = content["format"] == FORMAT and all(map(_SHARD.fullmatch, self.shards))
        except (ValueError, TypeError, KeyError, AttributeError):
            known = False
        if not known:
            raise ExamplesUnreadable(f"{path} is no index of examples in format {FORMAT}.")

    @property
    def files(self) -> list[str]:
        """The names of all files, the index first."""
        return [INDEX_NAME, *self.shards]

    def batches(self, unreadable: list[str]) -> Iterator[Examples]:
        """Those of a batch at a time, of each image that of the latest round.

        Args:
            unreadable: takes a sentence for each file that is missing, damaged, or not the one that was written; its
                examples are left out.
        """
        batches: dict[int, list[tuple[int, str]]] = {}
        for name in self.shards:
            batch, round_number = map(int, _SHARD.fullmatch(name).groups())
            batches.setdefault(batch, []).append((round_number, name))
        for _, rounds in sorted(batches.items()):
            seen: set[int] = set()
            for _, name in sorted(rounds, reverse=True):
                try:
                    examples = self._read(name)
                except ExamplesUnreadable as error:
                    unreadable.append(str(error))
                    continue
                fresh = torch.tensor([index not in seen for index in examples.index.tolist()])
                seen.update(examples.index.tolist())
                if fresh.any():
                    yield examples.rows(fresh)

    def _read(self, name: str) -> Examples:
        path = self.folder / name
        if not path.is_file():
            raise ExamplesUnreadable(f"{name} is missing.")
        content = path.read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if found != self.shards[name]:
            raise ExamplesUnreadable(
                f"{name} is not the file that was written ({len(content)} bytes, sha256 {found[:12]}... instead of "
                f"{self.shards[name][:12]}...): truncated, damaged or changed."
            )
        try:
            examples = Examples(**load(content))
        except (SafetensorError, TypeError) as error:
            raise ExamplesUnreadable(f"{name} holds no examples: {error}.") from None
        shapes = {len(getattr(examples, entry.name)) for entry in fields(examples)}
        if len(shapes) > 1 or examples.adversarial.ndim != 4 or examples.adversarial.dtype != torch.float32:
            raise ExamplesUnreadable(f"{name} holds no examples: its tensors do not belong together.")
        return examples


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()  # a batch of images: it fits into memory
