"""What a model card says of the checkpoint that training started from."""

import os
from pathlib import Path

from hf_robust_ft.models.backbones import BACKBONES
from hf_robust_ft.models.efficientnet_lite import EMBEDDED_MODELS
from hf_robust_ft.models.open_clip_checkpoints import PREFIX


def describe_source(model_id: str, *, by_short_name: bool = True) -> dict[str, str]:
    """`base_model`, a Hub id, or `base_model_text`; a local folder or file is named without its path.

    Args:
        model_id: what was loaded.
        by_short_name: whether a name of our tables is what they say, as on the command line; `from_pretrained("vit")`
            in a script loads the folder `vit`.

    >>> describe_source("r50")
    {'base_model': 'timm/resnet50.a1_in1k'}
    """
    if by_short_name and model_id in BACKBONES:
        return {"base_model": BACKBONES[model_id].hub_id}
    if by_short_name and model_id in EMBEDDED_MODELS:
        return {"base_model_text": EMBEDDED_MODELS[model_id].source}
    path = os.path.expanduser(model_id)
    if os.path.exists(path):
        return {"base_model_text": Path(path).resolve().name}
    if model_id.startswith(PREFIX):
        return {"base_model_text": f"open_clip {model_id.removeprefix(PREFIX)}"}
    return {"base_model": model_id}
