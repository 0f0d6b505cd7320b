"""AutoLoRA's learning rate: APGD's rule for step sizes, over epochs of validation robust accuracy."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from hf_robust_ft.training.remembered import remembered

RULES = ("authors", "apgd", "off")
ENOUGH_RISES = 0.75  # share of a window's epochs
LEAST_RATE = 1e-5  # training ends below


def halvings(accuracies: Sequence[float], window: int = 4, rule: str = "authors") -> list[bool]:
    """Whether the rate is halved at each check: after epoch `window` + 1, and every `window` epochs from then on.

    It is where robust accuracy rose in fewer than three quarters of the window's epochs, or where its best is that of
    the last check, from the second check on. The latter counts not right after a halving under "apgd", as in APGD (and
    in the paper's text); under "authors" always, as in their code.

    Args:
        accuracies: validation robust accuracy after each epoch.
        window: epochs between checks.
        rule: "authors", "apgd" or "off".

    >>> halvings([0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5, 0.5, 0.5])
    [False, True]
    """
    found: list[bool] = []
    for last in range(window, len(accuracies), window) if rule != "off" else ():
        rises = sum(later > earlier for earlier, later in pairwise(accuracies[last - window : last + 1]))
        stands = last > window and max(accuracies[: last + 1]) <= max(accuracies[: last - window + 1])
        found.append(rises < ENOUGH_RISES * window or (stands and (rule == "authors" or not found[-1])))
    return found


class AutoLoraRecord(TrainerCallback, ExportableState):
    """What `trainer_state.json` keeps of AutoLoRA, the same on every process.

    Attributes:
        accuracy: of the branch on the training images, in [0, 1]; 0 before it is measured.
        measured: the epoch before which it was, from 0; -1 for none.
        robust_accuracies: on the validation images, after each epoch from the first at eps_g on.
        goes_back: whether the next epoch begins with the best weights.
    """

    def __init__(self):
        self._forget()

    def _forget(self) -> None:
        self.accuracy, self.measured = 0.0, -1
        self.robust_accuracies: list[float] = []
        self.goes_back = False

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": dict(vars(self))}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        self._forget()
        vars(self).update(remembered(self, state))
