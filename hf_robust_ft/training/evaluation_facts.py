"""What a report of an evaluation within `Trainer.evaluate()` says beside its figures."""

from typing import Any

from accelerate import Accelerator
from torch import nn

from hf_robust_ft.attacks.precision import evaluated_in
from hf_robust_ft.data.source_hashes import source_digest
from hf_robust_ft.data.sources import loaded_facts


def data_facts(dataset: Any, in_training: bool) -> dict[str, Any]:
    """Where the images are from, and after training which they are: that reads all their files."""
    digest = None if in_training else source_digest(dataset)
    return loaded_facts(dataset) | ({"source_digest": digest} if digest else {})


def precision_facts(model: nn.Module, accelerator: Accelerator, in_training: bool) -> dict[str, str]:
    """The half precision of an evaluation, that of training and of the weights included."""
    autocast = accelerator.mixed_precision
    warns = not in_training and accelerator.is_main_process
    return evaluated_in(model, None if autocast == "no" else autocast, warn=warns)
