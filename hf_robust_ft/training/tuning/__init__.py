"""Fine-tuning settings beyond `Trainer`'s own: learning rates by depth, weight averages, freezing, LoRA."""

from hf_robust_ft.training.tuning.arguments import TuningArguments
from hf_robust_ft.training.tuning.trainer import TuningTrainer

__all__ = ["TuningArguments", "TuningTrainer"]
