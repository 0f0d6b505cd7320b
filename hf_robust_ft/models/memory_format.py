"""Which memory layout makes a model fast."""

import torch
from torch import nn


def use_fast_memory_format(model: nn.Module) -> str:
    """Convert a convolutional model to channels_last, in place, and name the layout in use.

    An attack step on EfficientNet-Lite0 takes about a third of the time in channels_last on CPU. A model counts as
    convolutional when convolution kernels (4-D) larger than 1 x 1 stand in more than one of its layers: a vision
    transformer has one, its patch embedding.
    """
    kernels = [parameter for parameter in model.parameters() if parameter.ndim == 4 and parameter.shape[-1] > 1]
    if len(kernels) < 2:
        return "contiguous"
    model.to(memory_format=torch.channels_last)
    return "channels_last"
