"""The objectives by name."""

from collections.abc import Callable

from hf_robust_ft.training.objectives.at import at
from hf_robust_ft.training.objectives.fare import fare
from hf_robust_ft.training.objectives.mart import mart
from hf_robust_ft.training.objectives.passes import Loss
from hf_robust_ft.training.objectives.pmg_aft import pmg_aft
from hf_robust_ft.training.objectives.trades import trades

OBJECTIVES: dict[str, Callable[..., Loss]] = {
    "at": at, "trades": trades, "mart": mart, "pmg_aft": pmg_aft, "fare": fare,
}  # fmt: skip
# Those that ask the frozen network which training starts from.
TAUGHT = ("pmg_aft", "fare")
# The authors' weights of the KL term, of those that have one; and of that to the frozen network.
DEFAULT_BETA = {"trades": 6.0, "mart": 5.0, "pmg_aft": 1.0}
DEFAULT_ALPHA = {"pmg_aft": 1.0}
