"""What a callback remembers over a checkpoint: its attributes, in `trainer_state.json`."""

import copy
from typing import Any

from transformers import TrainerCallback, TrainerState


def remembered(callback: TrainerCallback, state: TrainerState) -> dict[str, Any]:
    """What `callback.state()` gave as "attributes" when the checkpoint being resumed was written.

    Empty in a run that starts anew, and in one whose checkpoint is from before there was such a callback.
    """
    saved = (state.stateful_callbacks or {}).get(type(callback).__name__) if state.global_step > 0 else None
    return copy.deepcopy(saved["attributes"]) if saved else {}
