"""Object detection datasets with columns `image` and `objects`, and what turns them into batches; experimental."""

from hf_robust_ft.data.detection.loading import EMBEDDED_BOXES, BadBoxError, DetectionSplits, load_detection_dataset
from hf_robust_ft.data.detection.transforms import with_pixel_values_and_boxes

__all__ = [
    "EMBEDDED_BOXES",
    "BadBoxError",
    "DetectionSplits",
    "load_detection_dataset",
    "with_pixel_values_and_boxes",
]
