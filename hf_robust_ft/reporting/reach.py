"""What a report tells of whether training's attacks reached the network that learned, in words."""

from collections.abc import Mapping
from typing import Any

REACH = "attack_loss_seen"  # in logs, and in a report's training settings
LEAST = 0.8  # of the loss that attacks found, what training should see


def reach_of(training: Mapping[str, Any] | None) -> float | None:
    """The lowest ratio of loss seen to loss found over a stretch of training; None where it was not measured."""
    told = (training or {}).get(REACH)
    return told["lowest"] if isinstance(told, Mapping) else None


def reach_sentence(lowest: float) -> str:
    """What such a ratio means.

    >>> reach_sentence(0.997)
    'Training saw what its attacks found: at least 100 % of their loss over any stretch.'
    """
    if lowest >= LEAST:
        return f"Training saw what its attacks found: at least {100 * lowest:.0f} % of their loss over any stretch."
    return (
        f"Training did not see what its attacks found: over a stretch, {100 * lowest:.0f} % of their loss. The network "
        "that was attacked is another one than learned from it, and may withstand few attack steps but not many."
    )
