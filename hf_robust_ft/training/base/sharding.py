"""FSDP of image classifiers under attack, where accelerate expects language models that are not attacked."""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator
from torch import nn

FSDP1_FORGETS = (
    "Resumed under FSDP1: accelerate 1.15 does not restore the optimizer's state as saved, so the run goes on from "
    "the same weights and schedule, but not bitwise. FSDP2 (fsdp_config={'version': 2}) does restore it."
)


@contextmanager
def without_input_embeddings(model: nn.Module) -> Iterator[None]:
    """Hide a model's input embeddings from accelerate while it shards the model.

    accelerate 1.15 makes them a unit of their own. An image model has none (ResNet: NotImplementedError), or they lie
    in a layer that is a unit already (ViT, DeiT, DINOv2: TypeError).
    """
    model.get_input_embeddings = lambda: None
    try:
        yield
    finally:
        del model.get_input_embeddings


def reduce_gradients_each_batch(accelerator: Accelerator) -> None:
    """Let FSDP1 reduce gradients after every accumulated batch, not after the last one only.

    It keeps unreduced gradients where the backward of the next batch's attack looks for reduced ones, and raises. The
    sum is the same, for one reduction more a batch; FSDP2 and DDP need none of this.
    """
    accelerator.gradient_state.plugin_kwargs["sync_each_batch"] = True
