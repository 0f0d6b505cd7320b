"""Robust fine-tuning of pretrained vision models with the Hugging Face Trainer API."""

from importlib import import_module
from typing import Any

_HOMES = {
    "AdversarialTrainer": "training.trainer",
    "AdversarialTrainingArguments": "training.arguments",
    "EpsilonSchedulerCallback": "training.scheduler",
    "ThreatModel": "attacks.threat_model",
    "PixelSpace": "attacks.pixels",
    "PixelClassifier": "attacks.pixels",
    "PixelSegmenter": "attacks.segmenter",
    "PixelDetector": "attacks.detector",
    "APGD": "attacks",
    "AttackResult": "attacks",
    "apgd": "attacks",
    "evaluate_robustness": "evaluation.evaluate",
    "RobustnessReport": "evaluation.report",
    "evaluate_segmentation": "evaluation.segmentation.evaluate",
    "SegmentationReport": "evaluation.segmentation.report",
    "evaluate_detection": "evaluation.detection.evaluate",
    "DetectionReport": "evaluation.detection.report",
    "hinge": "schedules",
    "linear_warmup": "schedules",
    "constant": "schedules",
    "SCHEDULES": "schedules",
    "load_image_classifier": "models",
    "load_image_dataset": "data",
}

__version__ = "0.1.0"
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    # Looked up on first use: importing transformers takes seconds, which `--help` should not cost.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
