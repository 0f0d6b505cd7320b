"""Which classes of transformers a checkpoint's config names, before anything of it is loaded."""

import json
import os

from transformers.utils import cached_file

from hf_robust_ft.models.open_clip_checkpoints import PREFIX


def stated_architectures(model_id: str, revision: str | None = None) -> frozenset[str]:
    """The `architectures` of a checkpoint's `config.json`; none where no config is to be had.

    Args:
        model_id: a folder or Hub id; of short names and timm's nothing is read.
        revision: of the Hub id.
    """
    folder = os.path.expanduser(model_id)
    if not os.path.isdir(folder) and ("/" not in model_id or model_id.startswith(("timm/", PREFIX))):
        return frozenset()
    quiet = ("missing_entries", "connection_errors", "gated_repo")
    options = {f"_raise_exceptions_for_{each}": False for each in quiet}
    try:
        path = cached_file(folder, "config.json", revision=revision, **options)
        with open(path or os.devnull, encoding="utf-8") as file:
            return frozenset(json.load(file).get("architectures") or ())
    except (OSError, ValueError, AttributeError):  # loading tells what is wrong with it
        return frozenset()
