"""Image classification datasets with columns `image` and `label`, and what turns them into batches."""

from hf_robust_ft.data.augmentation import AUGMENTATIONS, SeededAugmentation
from hf_robust_ft.data.description import describe_transforms
from hf_robust_ft.data.images import UndecodableImageError
from hf_robust_ft.data.labels import align_labels
from hf_robust_ft.data.loading import ImageSplits, load_image_dataset
from hf_robust_ft.data.specs import SPECS, DatasetSpec, expected_sizes
from hf_robust_ft.data.splits import stratified_sample
from hf_robust_ft.data.streaming import Streaming
from hf_robust_ft.data.transforms import with_pixel_values

__all__ = [
    "AUGMENTATIONS",
    "SPECS",
    "DatasetSpec",
    "ImageSplits",
    "SeededAugmentation",
    "Streaming",
    "UndecodableImageError",
    "align_labels",
    "describe_transforms",
    "expected_sizes",
    "load_image_dataset",
    "stratified_sample",
    "with_pixel_values",
]
