"""Tiny detectors of random weights, and canvases with coloured squares and their boxes."""

import torch
from transformers import (
    ConditionalDetrConfig,
    ConditionalDetrForObjectDetection,
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    DetrConfig,
    DetrForObjectDetection,
    ResNetConfig,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrResNetConfig,
    YolosConfig,
    YolosForObjectDetection,
    set_seed,
)

CLASSES, SIZE, QUERIES = 3, 32, 8


def yolos(num_labels: int = CLASSES, dropout: float = 0.0, seed: int = 0) -> YolosForObjectDetection:
    set_seed(seed)
    return YolosForObjectDetection(
        YolosConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=[SIZE, SIZE],
            patch_size=8, num_detection_tokens=QUERIES, num_labels=num_labels, hidden_dropout_prob=dropout,
            use_mid_position_embeddings=False,
        )
    )  # fmt: skip


def _resnet() -> ResNetConfig:
    return ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )


_TRANSFORMER = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_queries": QUERIES, "dropout": 0.0,
}  # fmt: skip


def detr(num_labels: int = CLASSES, auxiliary_loss: bool = True, seed: int = 0) -> DetrForObjectDetection:
    set_seed(seed)
    return DetrForObjectDetection(
        DetrConfig(
            backbone_config=_resnet(), use_timm_backbone=False, num_labels=num_labels, auxiliary_loss=auxiliary_loss,
            **_TRANSFORMER,
        )
    )  # fmt: skip


def conditional_detr(num_labels: int = CLASSES, seed: int = 0) -> ConditionalDetrForObjectDetection:
    set_seed(seed)
    return ConditionalDetrForObjectDetection(
        ConditionalDetrConfig(
            backbone_config=_resnet(), use_timm_backbone=False, num_labels=num_labels, auxiliary_loss=True,
            **_TRANSFORMER,
        )
    )  # fmt: skip


def deformable_detr(num_labels: int = CLASSES, seed: int = 0) -> DeformableDetrForObjectDetection:
    set_seed(seed)
    return DeformableDetrForObjectDetection(
        DeformableDetrConfig(
            backbone_config=_resnet(), use_timm_backbone=False, num_labels=num_labels, num_feature_levels=2,
            auxiliary_loss=True, **(_TRANSFORMER | {"d_model": 32}),  # of 32 groups
        )
    )  # fmt: skip


def rt_detr(num_labels: int = CLASSES, denoising: int = 4, seed: int = 0) -> RTDetrForObjectDetection:
    """Its loss also takes the answers of its encoder and, in training, of boxes with noise."""
    set_seed(seed)
    backbone = RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage3", "stage4"],
    )  # fmt: skip
    return RTDetrForObjectDetection(
        RTDetrConfig(
            backbone_config=backbone, encoder_in_channels=[16, 16], feat_strides=[16, 32], encode_proj_layers=[1],
            encoder_hidden_dim=16, decoder_in_channels=[16, 16], num_feature_levels=2, encoder_ffn_dim=16,
            decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2, d_model=16, num_queries=5,
            decoder_layers=2, num_denoising=denoising, hidden_expansion=0.5, num_labels=num_labels,
            initializer_range=0.2,
        )
    )  # fmt: skip


DETECTORS = {
    "yolos": yolos,
    "detr": detr,
    "conditional_detr": conditional_detr,
    "deformable_detr": deformable_detr,
    "rt_detr": rt_detr,
}


def squares(count: int = 16, size: int = SIZE, seed: int = 0) -> list[dict]:
    """Examples of `pixel_values` (3, size, size) in [0, 1] and `labels`: one or two squares, their colour the class."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.eye(3) * 0.7 + 0.15
    examples = []
    for _ in range(count):
        pixels = 0.5 + 0.03 * torch.randn(3, size, size, generator=generator)
        sides = [half for half in (0, 1) if half == 0 or torch.rand(1, generator=generator) < 0.5]
        classes = torch.randint(0, CLASSES, (len(sides),), generator=generator)
        boxes = []
        for half, label in zip(sides, classes, strict=True):
            side = int(torch.randint(size // 4, size // 2 - 1, (1,), generator=generator))
            left = half * size // 2 + int(torch.randint(0, size // 2 - side, (1,), generator=generator))
            top = int(torch.randint(0, size - side, (1,), generator=generator))
            pixels[:, top : top + side, left : left + side] = colours[label][:, None, None]
            boxes.append([(left + side / 2) / size, (top + side / 2) / size, side / size, side / size])
        labels = {"class_labels": classes, "boxes": torch.tensor(boxes)}
        examples.append({"pixel_values": pixels.clamp(0, 1), "labels": labels})
    return examples


def fitted(model: torch.nn.Module, examples: list[dict], steps: int = 60) -> torch.nn.Module:
    """The model, trained on these examples, in evaluation mode."""
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    pixels, labels = torch.stack([each["pixel_values"] for each in examples]), [each["labels"] for each in examples]
    for _ in range(steps):
        optimizer.zero_grad()
        model(pixel_values=pixels, labels=labels).loss.backward()
        optimizer.step()
    return model.eval()
