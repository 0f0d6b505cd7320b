"""What becomes of a batch before anything else: ids taken out, the first one checked, images mixed."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hf_robust_ft.schedules.sample_ids import without_ids
from hf_robust_ft.training.attack_watch import AttackWatch
from hf_robust_ft.training.checks import check_first_batch


def batch_of(trainer: Any, inputs: Mapping[str, Any], is_training: bool) -> tuple[dict[str, Any], Tensor | None]:
    """The batch as the model is to see it, and the ids (N,) of its images, where it held any.

    In training the first one is checked, and each is mixed as the trainer's arguments want it: by a draw that depends
    on seed, process and step alone.
    """
    inputs, ids = without_ids(inputs)
    if not is_training:
        return inputs, ids
    if not trainer.adversary.is_ready:
        check_first_batch(trainer, inputs)
    if trainer.args.mixes:
        batch = trainer.callback_of(AttackWatch).in_training  # which of those that one optimizer step accumulates
        key = trainer.args.seed, trainer.args.process_index, trainer.state.global_step, batch
        inputs = trainer.args.mix(inputs, trainer.adversary.num_labels(trainer.model), key)
    return inputs, ids
