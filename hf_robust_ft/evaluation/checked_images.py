"""Which images the trust checks look at: drawn at random by a seed, equally many of each class as far as there are.

The first images of a data set sorted by class, as an imagefolder is, are of one class or two.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

CHECKED_IMAGES = 64  # enough to see a weak attack, few enough to cost little beside the evaluation


def draw_by_class(labels: Sequence[int], count: int, seed: int) -> list[int]:
    """The indices of `count` images, in turn of every class, ascending; all where there are no more.

    >>> draw_by_class([0, 0, 0, 0, 1, 2], 3, seed=0)[1:]
    [4, 5]
    """
    generator = np.random.default_rng(seed)
    taken: Counter = Counter()
    ranked = []
    for tie, index in enumerate(generator.permutation(len(labels)).tolist()):
        taken[labels[index]] += 1
        ranked.append((taken[labels[index]], tie, index))
    return sorted(index for _, _, index in sorted(ranked)[:count])


class ClassReservoir:
    """Images kept of a stream whose length and labels nobody knows before, as balanced over its classes as they come.

    Reservoir sampling of each class, with room taken from the largest one (Chrysakis & Moens 2020, "Online continual
    learning from imbalanced data"). All are of the first one's size.

    Args:
        count: how many to keep.
        seed: of what is kept.
    """

    def __init__(self, count: int, seed: int):
        self.count, self.generator = count, np.random.default_rng(seed)
        self.kept: list[tuple[int, int, Tensor]] = []  # position, label, image
        self.seen: Counter = Counter()

    def __len__(self) -> int:
        return len(self.kept)

    def add(self, pixels: Tensor, labels: Tensor, first: int) -> None:
        """Offer a batch (N, C, H, W), (N,), whose first image is the one at position `first`."""
        if self.kept and pixels.shape[1:] != self.kept[0][2].shape:
            return
        for row, label in enumerate(labels.tolist()):
            self.seen[label] += 1
            place = self._place(label)
            if place is not None:
                self.kept[place : place + 1] = [(first + row, label, pixels[row].detach().clone())]

    def _place(self, label: int) -> int | None:
        """Where the image goes; None if it is not kept."""
        if len(self.kept) < self.count:
            return len(self.kept)
        held = Counter(kept for _, kept, _ in self.kept)
        largest = max(held.values())
        if held[label] < largest:
            crowded = [place for place, (_, kept, _) in enumerate(self.kept) if held[kept] == largest]
            return crowded[self.generator.integers(len(crowded))]
        own = [place for place, (_, kept, _) in enumerate(self.kept) if kept == label]
        drawn = self.generator.integers(self.seen[label])
        return own[drawn] if drawn < len(own) else None

    def images(self) -> tuple[Tensor, Tensor, list[int]]:
        """Pixels (M, C, H, W), labels (M,) and positions of what is kept, in the order of the stream."""
        positions, labels, images = zip(*sorted(self.kept, key=lambda kept: kept[0]), strict=True)
        pixels = torch.stack(images)
        return pixels, torch.tensor(labels, device=pixels.device), list(positions)
