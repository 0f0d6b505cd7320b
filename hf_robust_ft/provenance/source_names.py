"""Names that a user gives for models, datasets and recipes: what is said where nothing is found under one."""

import difflib
import os
from enum import Enum

from huggingface_hub import HfApi, is_offline_mode
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import httpx

PATIENCE = 10.0  # seconds for the Hub's first answer


class HubAnswer(Enum):
    """What the Hub says of a name. `UNKNOWN`: it was not asked, or its answer leaves that open."""

    THERE = "there"
    ABSENT = "absent"
    SILENT = "silent"
    UNKNOWN = "unknown"


def ask_hub(name: str, repo_type: str, token: str | bool | None = None) -> HubAnswer:
    """Whether the Hub has a repository of this name, by one request.

    Loading alone would try for half a minute to find that out, where nothing answers.
    """
    if is_offline_mode():
        return HubAnswer.UNKNOWN
    try:
        HfApi(token=token).repo_info(name, repo_type=repo_type, timeout=PATIENCE)
    except GatedRepoError:
        return HubAnswer.THERE
    except (RepositoryNotFoundError, HFValidationError):
        return HubAnswer.ABSENT
    except httpx.TransportError:
        return HubAnswer.SILENT
    except (HfHubHTTPError, ValueError, OSError):  # out of order, or no Hub: loading will say more
        return HubAnswer.UNKNOWN
    return HubAnswer.THERE


def nothing_here(name: str) -> str:
    """A sentence that says so, and names those that are there under almost that name.

    >>> nothing_here("no/such/name")
    'There is no file or folder no/such/name here.'
    """
    near, shown = nearest_places(name), name if name.isprintable() and len(name) < 200 else repr(name[:200])
    return f"There is no file or folder {shown} here" + (f"; there is {' or '.join(near)}." if near else ".")


def nearest_places(name: str) -> list[str]:
    """Paths that are there, and differ from `name` in a letter or two; at most three."""
    parts = os.path.expanduser(name).rstrip(os.sep).split(os.sep)
    for count in range(len(parts)):
        above = os.sep.join(parts[:count]) or (os.sep if name.startswith(os.sep) else os.curdir)
        if os.path.exists(os.sep.join(parts[: count + 1]) or os.sep):
            continue
        try:
            there = {entry.lower(): entry for entry in os.listdir(above) if not entry.startswith(".")}
        except (OSError, ValueError):
            return []
        close = [there[match] for match in difflib.get_close_matches(parts[count].lower(), there, n=3, cutoff=0.6)]
        paths = [os.sep.join([*parts[:count], entry, *parts[count + 1 :]]) for entry in close]
        return [path for path in paths if os.path.exists(path)]
    return []
