"""The names that models go by: which are known, and what a report says of one."""

import os
from typing import Any

from hf_robust_ft.models import BACKBONES, describe_source
from hf_robust_ft.models.backbones import unknown_model
from hf_robust_ft.models.efficientnet_lite import EMBEDDED_MODELS
from hf_robust_ft.models.open_clip_checkpoints import PREFIX
from hf_robust_ft.provenance.source_names import nothing_here


def check_model_name(name: str, revision: str | None = None) -> None:
    """Refuse a short name that is none of ours, and a revision of a path; the rest is left to loading.

    Raises:
        ValueError: it is not known (the nearest ones are named), is a path to nothing, or has no revisions.
    """
    if revision and name not in BACKBONES and os.path.exists(os.path.expanduser(name)):
        raise ValueError(f"{name} lies on this machine and has no revision {revision!r}: leave model_revision out.")
    if name.startswith(("/", "~", "./", "../")) and not os.path.exists(os.path.expanduser(name)):
        raise ValueError(nothing_here(name))
    is_short = "/" not in name and name not in BACKBONES and name not in EMBEDDED_MODELS
    if is_short and not name.startswith(PREFIX) and not os.path.exists(os.path.expanduser(name)):
        raise unknown_model(name)


def describe_model(model_id: str) -> dict[str, Any]:
    """What a report says of the model that training started from; a local path is named without its folders."""
    known = BACKBONES.get(model_id) or EMBEDDED_MODELS.get(model_id)
    return describe_source(model_id) | ({"base_model_license": known.licence} if known else {})
