"""What a training step minimises, as functions of passes: Trainer's own loss and logits on images of the batch."""

from hf_robust_ft.training.objectives.at import at
from hf_robust_ft.training.objectives.passes import Loss, Objective, Pass, Passes

__all__ = ["Loss", "Objective", "Pass", "Passes", "at"]
