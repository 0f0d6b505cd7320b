"""How training images are varied, and the seed that makes the variation repeatable."""

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torchvision.transforms import v2
from transformers import TrainerCallback

# The paper's: flip 0.5, colour jitter 0.25, a small rotation (2 degrees in the group's sibling code base). It names no
# random crop: training images then go through the processor's own resizing, as evaluation images do.
FLIP, JITTER, DEGREES = 0.5, 0.25, 2
AUGMENTATIONS: dict[str, v2.Transform | None] = {
    "none": None,
    "paper": v2.Compose(
        [
            v2.RandomHorizontalFlip(FLIP),
            v2.ColorJitter(brightness=JITTER, contrast=JITTER, saturation=JITTER),
            v2.RandomRotation(DEGREES),
        ]
    ),
}
AUGMENTATION_WORDS: dict[str, list[str]] = {
    "none": [],
    "paper": [
        f"horizontal flip with probability {FLIP}",
        f"colour jitter {JITTER} (brightness, contrast, saturation)",
        f"rotation by up to {DEGREES} degrees",
    ],
}


class AugmentationState:
    """The seed and the epoch that augmentations are drawn from, in memory that loader workers share.

    Until both are set, augmentations are drawn from torch's global random state, as torchvision's are.
    """

    def __init__(self):
        self._numbers = torch.full((2,), -1, dtype=torch.int64).share_memory_()

    def set(self, seed: int, epoch: int) -> None:
        self._numbers.copy_(torch.tensor([seed, epoch]))

    @contextmanager
    def drawing_for(self, image: bytes) -> Iterator[None]:
        """Within it, torch draws what seed, epoch and this image say; afterwards as if nothing had been drawn."""
        seed, epoch = self._numbers.tolist()
        if epoch < 0:
            yield
            return
        digest = hashlib.blake2b(image, digest_size=8, key=f"{seed} {epoch}".encode()).digest()
        # Not torch.manual_seed, which seeds the accelerator as well.
        before = torch.get_rng_state()
        torch.default_generator.manual_seed(int.from_bytes(digest, "big") >> 1)
        try:
            yield
        finally:
            torch.set_rng_state(before)

    def __deepcopy__(self, memo: dict) -> "AugmentationState":
        return self  # `datasets` copies its transforms; the copies follow the same epochs


class SeededAugmentation(TrainerCallback):
    """Tells the training dataset the epoch, so that the same image varies alike in every run with the same seed.

    An image's variation then depends on `args.seed` (`data_seed`, if given), the epoch and the image: not on the number
    of workers or processes, nor on what else draws random numbers, nor on where training was resumed. For datasets of
    `with_pixel_values`; any other, and a stream, is left alone.
    """

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        transform = transform_of(getattr(train_dataloader, "dataset", None))
        augmentation = getattr(transform, "state", None)
        if isinstance(augmentation, AugmentationState):
            seed = args.seed if args.data_seed is None else args.data_seed
            augmentation.set(seed, math.floor((state.epoch or 0) + 1e-6))


def transform_of(dataset: Any) -> Any:
    """The lazy transform of a `datasets.Dataset`, or None."""
    settings = getattr(dataset, "format", None)
    return settings["format_kwargs"].get("transform") if isinstance(settings, dict) else None
