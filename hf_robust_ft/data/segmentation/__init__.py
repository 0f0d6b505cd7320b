"""Semantic segmentation datasets with columns `image` and `mask`, and what turns them into batches."""

from hf_robust_ft.data.segmentation.augmentation import JOINT_AUGMENTATION_WORDS
from hf_robust_ft.data.segmentation.loading import (
    EMBEDDED_SCENES,
    SegmentationSplits,
    drawn_pairs,
    load_segmentation_dataset,
    loss_ignore_index,
)
from hf_robust_ft.data.segmentation.masks import BadMaskError, MaskReader, decode_mask
from hf_robust_ft.data.segmentation.transforms import with_pixel_values_and_masks

__all__ = [
    "EMBEDDED_SCENES",
    "JOINT_AUGMENTATION_WORDS",
    "BadMaskError",
    "MaskReader",
    "SegmentationSplits",
    "decode_mask",
    "drawn_pairs",
    "load_segmentation_dataset",
    "loss_ignore_index",
    "with_pixel_values_and_masks",
]
