"""Image classification datasets with columns `image` and `label`, and what turns them into batches."""

from hf_robust_ft.data.labels import align_labels
from hf_robust_ft.data.loading import load_image_dataset
from hf_robust_ft.data.transforms import AUGMENTATIONS, with_pixel_values

__all__ = ["AUGMENTATIONS", "align_labels", "load_image_dataset", "with_pixel_values"]
