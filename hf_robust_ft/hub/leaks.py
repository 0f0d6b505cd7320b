"""What must not leave this machine: tokens, the environment's secrets, and where files lie."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import get_token

from hf_robust_ft.hub.contents import published_content
from hf_robust_ft.provenance.redacted_command import SECRET_NAMES, SECRETS

LEAST_LENGTH = 8  # shorter values are no secrets, and occur by chance
TEXT = (".md", ".json", ".yaml", ".py")


def check_for_leaks(folder: str | Path, files: Sequence[str], token: str | bool | None = None) -> None:
    """Raise if a text file holds a token, the value of a secret in the environment, or a path of this machine.

    Raises:
        ValueError: one does; it is named, what it holds is not.
    """
    folder = Path(folder)
    secrets = {value for name, value in os.environ.items() if any(word in name.upper() for word in SECRET_NAMES)}
    secrets |= {value for value in (token, get_token()) if isinstance(value, str)}
    places = {str(folder.absolute()), str(folder.resolve()), str(Path.home()), os.getcwd()} - {"/"}
    for name in files:
        if not name.endswith(TEXT):
            continue
        content = published_content(folder / name)
        if SECRETS.search(content.decode(errors="replace")) or any(
            len(value) >= LEAST_LENGTH and value.encode() in content for value in secrets
        ):
            raise ValueError(f"{folder / name} holds a token or another secret; remove it. Nothing was uploaded.")
        found = next((place for place in sorted(places, key=len) if _names(place, content)), None)
        if found is not None:
            raise ValueError(
                f"{folder / name} names a folder of this machine ({found}); remove it. Nothing was uploaded."
            )


def _names(place: str, content: bytes) -> bool:
    """Whether a path stands in the text as itself or at the head of another."""
    return re.search(rb"(?<![\w.-])" + re.escape(place.encode()) + rb"(?![\w-])", content) is not None
