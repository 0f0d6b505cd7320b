"""An open_clip image tower without a timm twin, as a transformers classifier of its own.

This file imports nothing of hf_robust_ft: `save_pretrained` copies it next to the weights, so the checkpoint reloads
with `trust_remote_code=True` where hf_robust_ft is not installed (open_clip_torch is), and without that flag where it
is.
"""

from typing import Any

import open_clip
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

# open_clip builds its image towers inside whole models: the least text tower it takes.
_NO_TEXT = {"layers": 1, "width": 8, "heads": 1, "vocab_size": 2, "context_length": 2}


class OpenClipVisionConfig(PreTrainedConfig):
    """Configuration of `OpenClipForImageClassification`.

    Args:
        embed_dim: outputs of the tower.
        vision_cfg: open_clip's own `vision_cfg`.
        quick_gelu: open_clip's own `quick_gelu`.
        normalize_features: divide the features by their norm before the head, as zero-shot classification does.
    """

    model_type = "open_clip_vision"

    embed_dim: int = 512
    vision_cfg: dict[str, Any] | None = None
    quick_gelu: bool = False
    normalize_features: bool = False
    initializer_range: float = 0.02


class OpenClipForImageClassification(PreTrainedModel):
    """open_clip's image tower, its projection included, and a linear head.

    Shape:
        pixel_values (N, 3, H, W) -> logits (N, num_labels).
    """

    config_class = OpenClipVisionConfig
    base_model_prefix = "visual"
    main_input_name = "pixel_values"
    accepts_loss_kwargs = False

    def __init__(self, config: OpenClipVisionConfig):
        super().__init__(config)
        vision = {**(config.vision_cfg or {}), "timm_model_pretrained": False, "output_tokens": False}
        self.visual = open_clip.CLIP(config.embed_dim, vision, dict(_NO_TEXT), quick_gelu=config.quick_gelu).visual
        self.classifier = nn.Linear(config.embed_dim, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Only the head is ever drawn anew."""
        if module is self.classifier:
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            nn.init.zeros_(module.bias)

    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, return_dict: bool | None = None
    ) -> ImageClassifierOutput | tuple[torch.Tensor, ...]:
        """Logits, and the loss where `labels` (N,) are given."""
        features = self.visual(pixel_values)
        if self.config.normalize_features:
            features = nn.functional.normalize(features, dim=-1)
        logits = self.classifier(features)
        loss = self.loss_function(labels, logits, self.config) if labels is not None else None
        if return_dict is False:
            return (logits,) if loss is None else (loss, logits)
        return ImageClassifierOutput(loss=loss, logits=logits)


AutoConfig.register(OpenClipVisionConfig.model_type, OpenClipVisionConfig, exist_ok=True)
AutoModelForImageClassification.register(OpenClipVisionConfig, OpenClipForImageClassification, exist_ok=True)
OpenClipVisionConfig.register_for_auto_class("AutoConfig")
OpenClipForImageClassification.register_for_auto_class("AutoModelForImageClassification")
