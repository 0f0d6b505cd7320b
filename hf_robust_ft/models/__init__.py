"""Pretrained image classifiers as plain transformers models with their processors."""

from hf_robust_ft.models.loading import load_image_classifier
from hf_robust_ft.models.memory_format import use_fast_memory_format

__all__ = ["load_image_classifier", "use_fast_memory_format"]
