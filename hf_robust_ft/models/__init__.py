"""Pretrained image classifiers as plain transformers models with their processors."""

from hf_robust_ft.models.loading import load_image_classifier

__all__ = ["load_image_classifier"]
