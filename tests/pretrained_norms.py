"""Tiny networks whose BatchNorm looks pretrained."""

import torch
from torch import nn

from hf_robust_ft.training.tuning.batch_norm import batch_norms


@torch.no_grad()
def pretrained(model: nn.Module) -> nn.Module:
    """With weights and biases that are not the initial ones, and running statistics of images (N, 3, 16, 16).

    A model without BatchNorm stays as it is.
    """
    generator, norms = torch.Generator().manual_seed(0), batch_norms(model)
    if not norms:
        return model
    for module in norms:
        module.weight.uniform_(0.5, 1.5, generator=generator)
        module.bias.uniform_(-0.1, 0.1, generator=generator)
        module.momentum = 1.0
    model.train()(2 * torch.rand(64, 3, 16, 16, generator=generator) - 1)
    for module in norms:
        module.momentum = 0.1
    return model.eval()


def still(model: nn.Module) -> nn.Module:
    """Batch statistics in training, and running ones that never move: attacks do not depend on the order of batches."""
    for module in batch_norms(model):
        module.momentum = 0.0
    return model
