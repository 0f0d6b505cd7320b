"""What is said of the head that RoLI trains first, given the fact `probe` of a run."""

from collections.abc import Mapping
from typing import Any

from hf_robust_ft.evaluation.confidence_intervals import accuracy_interval


def probe_doubt(probe: Mapping[str, Any] | None) -> str | None:
    """The warning that a probed head does no better under attack than guessing; None where it does, or is none.

    Args:
        probe: `adversarial_accuracy`, `guessing` (both in [0, 1]), `validation_images` and `eps`.
    """
    if not probe:
        return None
    accuracy, images = probe["adversarial_accuracy"], probe["validation_images"]
    if accuracy_interval(round(accuracy * images), images)[0] > probe["guessing"]:
        return None
    return (
        f"Under attack at {probe['eps']} the probed head is right on {accuracy:.1%} of {images} validation images, "
        f"within noise of the {probe['guessing']:.1%} that naming the most frequent class gives: this backbone has "
        "hardly any robustness for a head to inherit, which is what probing is for. Start from robustly pretrained "
        "weights, or leave probe_epochs out."
    )
