"""What becomes of a batch before anything else: ids taken out, the first one checked, images made smaller, mixed."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hf_robust_ft.schedules.sample_ids import without_ids
from hf_robust_ft.training.attack_watch import AttackWatch
from hf_robust_ft.training.checks import check_first_batch
from hf_robust_ft.training.low_resolution import at_resolution


def batch_of(trainer: Any, inputs: Mapping[str, Any], is_training: bool) -> tuple[dict[str, Any], Tensor | None]:
    """The batch as the model is to see it, and the ids (N,) of its images, where it held any.

    In training the first one is checked, and each is made smaller and mixed as the trainer's arguments want it: mixed
    by a draw that depends on seed, process and step alone.
    """
    inputs, ids = without_ids(inputs)
    if not is_training:
        return inputs, ids
    if not trainer.adversary.is_ready:
        check_first_batch(trainer, inputs)
    state = trainer.state
    if trainer.args.low_resolution < 1:
        progress = trainer.scheduler_callback.progress_at(state.global_step, state.max_steps)
        if (resolution := trainer.args.resolution_at(progress)) < 1:
            inputs = at_resolution(inputs, resolution, trainer.model)
    if trainer.args.mixes:
        batch = trainer.callback_of(AttackWatch).in_training  # which of those that one optimizer step accumulates
        key = trainer.args.seed, trainer.args.process_index, state.global_step, batch
        inputs = trainer.args.mix(inputs, trainer.adversary.num_labels(trainer.model), key)
    return inputs, ids
