"""What a training step minimises, as functions of passes: Trainer's own loss and logits on images of the batch."""

from hf_robust_ft.training.objectives.at import at
from hf_robust_ft.training.objectives.fare import fare
from hf_robust_ft.training.objectives.mart import mart
from hf_robust_ft.training.objectives.passes import Loss, Objective, Pass, Passes
from hf_robust_ft.training.objectives.pmg_aft import pmg_aft
from hf_robust_ft.training.objectives.table import OBJECTIVES
from hf_robust_ft.training.objectives.trades import trades

__all__ = ["OBJECTIVES", "Loss", "Objective", "Pass", "Passes", "at", "fare", "mart", "pmg_aft", "trades"]
