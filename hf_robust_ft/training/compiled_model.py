"""What a training attack sends its pixels through under `torch_compile`: the model, compiled once more."""

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend, is_compiled_module
from torch import nn


def model_for_attack(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """The unwrapped model, compiled with `accelerator`'s own options if it compiles at all.

    The compiled training model would not do: under DDP it holds the wrapper. One graph each serves training, an attack
    step and the attack's last forward, however eps, number of steps and mode change in between; a last, smaller batch
    adds one of each, for any size. The weights are the model's own.
    """
    plugin = accelerator.state.dynamo_plugin
    if plugin.backend == DynamoBackend.NO or is_compiled_module(model):
        return model
    return torch.compile(model, **plugin.to_kwargs())


def settle_loss(model: nn.Module) -> None:
    """Say what transformers' classifiers find out at their first loss, and for which they would compile once more."""
    config = getattr(model, "config", None)
    if getattr(config, "problem_type", "") is None and getattr(config, "num_labels", 1) > 1:
        config.problem_type = "single_label_classification"
