"""How training images and their masks are varied together, and the same words for a card."""

from functools import cache

from PIL import Image as PILImage
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from hf_robust_ft.data.augmentation import AUGMENTATION_WORDS, DEGREES, FLIP, JITTER
from hf_robust_ft.data.segmentation.masks import IGNORE_INDEX

SCALE = (0.5, 1.0)  # share of the image that a random crop keeps

JOINT_AUGMENTATION_WORDS = AUGMENTATION_WORDS | {
    "crop": [
        f"horizontal flip with probability {FLIP}",
        f"random crop of {SCALE[0]:.0%} to {SCALE[1]:.0%} of the image, enlarged to its size",
    ],
}


class RandomCrop(nn.Module):
    """A random part of image and mask, enlarged to the size it was taken from (masks by nearest neighbours)."""

    def forward(self, image: PILImage.Image, mask: tv_tensors.Mask) -> tuple[PILImage.Image, tv_tensors.Mask]:
        return v2.RandomResizedCrop((image.height, image.width), scale=SCALE)(image, mask)


@cache
def joint_augmentation(name: str, ignore_index: int = IGNORE_INDEX) -> nn.Module | None:
    """What `augmentation` names, of a PIL image and a mask of its size; corners that a rotation empties are ignored."""
    if name == "none":
        return None
    flip = v2.RandomHorizontalFlip(FLIP)
    if name == "crop":
        return v2.Compose([flip, RandomCrop()])
    jitter = v2.ColorJitter(brightness=JITTER, contrast=JITTER, saturation=JITTER)
    return v2.Compose([flip, jitter, v2.RandomRotation(DEGREES, fill={tv_tensors.Mask: ignore_index, "others": 0})])
