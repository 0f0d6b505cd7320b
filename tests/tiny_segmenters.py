"""Tiny random segmentation models, and scenes that they can learn: which colour a pixel has, is its class."""

import torch
from transformers import (
    ConvNextConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    set_seed,
)

CLASSES, IGNORED, SIZE = 4, 255, 32


def segformer(num_labels: int = CLASSES, dropout: float = 0.0, seed: int = 0) -> SegformerForSemanticSegmentation:
    """Its logits are a quarter of the images' size, and its decode head has a BatchNorm and dropout."""
    set_seed(seed)
    config = SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 16],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=16,
        num_labels=num_labels,
        classifier_dropout_prob=dropout,
        drop_path_rate=0.0,
    )
    return SegformerForSemanticSegmentation(config)


def upernet(num_labels: int = CLASSES, seed: int = 0) -> UperNetForSemanticSegmentation:
    """Its logits are of the images' size, and an auxiliary head has a share in its loss."""
    set_seed(seed)
    backbone = ConvNextConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    config = UperNetConfig(
        backbone_config=backbone,
        hidden_size=16,
        auxiliary_channels=8,
        auxiliary_in_channels=16,
        num_labels=num_labels,
        pool_scales=[1, 2],
    )
    return UperNetForSemanticSegmentation(config)


def scenes(count: int = 16, size: int = SIZE, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Examples of `pixel_values` (3, size, size) in [0, 1] and `labels` (size, size); a border is ignored."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.tensor([[0.8, 0.3, 0.3], [0.3, 0.8, 0.3], [0.3, 0.3, 0.8], [0.7, 0.7, 0.2]])
    examples = []
    for _ in range(count):
        cells = torch.randint(0, CLASSES, (2, 2), generator=generator)
        mask = cells.repeat_interleave(size // 2, 0).repeat_interleave(size // 2, 1)
        noise = 0.1 * torch.randn(3, size, size, generator=generator)
        pixels = (colours[mask].permute(2, 0, 1) + noise).clamp(0, 1)
        mask[:2] = IGNORED
        examples.append({"pixel_values": pixels, "labels": mask})
    return examples
