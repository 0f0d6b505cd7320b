"""The objectives by name."""

from collections.abc import Callable

from hf_robust_ft.training.objectives.at import at
from hf_robust_ft.training.objectives.mart import mart
from hf_robust_ft.training.objectives.passes import Loss
from hf_robust_ft.training.objectives.trades import trades

OBJECTIVES: dict[str, Callable[..., Loss]] = {"at": at, "trades": trades, "mart": mart}
# The authors' weights of the KL term, of those that have one.
DEFAULT_BETA = {"trades": 6.0, "mart": 5.0}
