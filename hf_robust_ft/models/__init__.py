"""Pretrained image classifiers as plain transformers models with their processors."""

from hf_robust_ft.models.backbones import BACKBONES, Backbone
from hf_robust_ft.models.loading import load_image_classifier
from hf_robust_ft.models.provenance import describe_source

__all__ = ["BACKBONES", "Backbone", "describe_source", "load_image_classifier"]
