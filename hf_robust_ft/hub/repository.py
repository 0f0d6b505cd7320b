"""The repository that is published to: its name, whether it is there, who may write, what it holds."""

import json
import logging
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub import HfApi, is_offline_mode
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import httpx, validate_repo_id

from hf_robust_ft.hub.errors import PublishError, cause_to_show, described
from hf_robust_ft.hub.retry import retry

logger = logging.getLogger(__name__)
T = TypeVar("T")

CLIENT_ERRORS = (HfHubHTTPError, httpx.HTTPError, json.JSONDecodeError, OSError, RuntimeError)


def check_repo_id(repo_id: str) -> None:
    """Raise unless the Hub could have a repository of this name.

    Raises:
        ValueError: it could not.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(
            f"{repo_id!r} is no repository id: {' '.join(str(error).split())} Give OWNER/NAME, such as "
            "your-name/robust-swin."
        ) from None


def check_online() -> None:
    """Raise in offline mode, before time is spent.

    Raises:
        PublishError: HF_HUB_OFFLINE is set.
    """
    if is_offline_mode():
        raise PublishError(
            "Cannot publish: the client is in offline mode (HF_HUB_OFFLINE is set). Unset it to publish."
        )


def create_repository(
    repo_id: str,
    *,
    repo_type: str = "model",
    token: str | bool | None = None,
    private: bool | None = None,
    space_sdk: str | None = None,
) -> str:
    """Create a repository unless it is there.

    Returns:
        Its whole name, OWNER/NAME.

    Raises:
        ValueError: an impossible name, or `private=True` for a repository that is public.
        PublishError: no token, no right to write there, or a Hub that does not answer.
    """
    check_repo_id(repo_id)
    check_online()
    api = HfApi(token=token)
    with_errors = {"what": f"Cannot publish to {repo_id}", "token": token}
    if "/" not in repo_id:
        user = explained(lambda: retry(api.whoami, "Asking whose the token is"), **with_errors)
        repo_id = f"{user['name']}/{repo_id}"

    def find():
        try:
            return api.repo_info(repo_id, repo_type=repo_type)
        except RepositoryNotFoundError as error:
            if getattr(error.response, "status_code", None) == 401 and token is not False:
                api.whoami()  # raises what is wrong with the token, if that is what is wrong
            return None

    found = explained(lambda: retry(find, f"Looking for {repo_id}"), **with_errors)
    if found is None:
        kind = {"repo_type": repo_type, "private": private, **({"space_sdk": space_sdk} if space_sdk else {})}

        def create():  # exist_ok: an earlier try may have succeeded and its answer been lost
            return api.create_repo(repo_id, exist_ok=True, **kind)

        explained(lambda: retry(create, f"Creating {repo_id}"), **with_errors)
    elif private and not found.private:
        raise ValueError(
            f"{repo_id} is there and public, which --private cannot change: change it in its settings, or publish "
            "under another name."
        )
    return repo_id


def branch_head(api: HfApi, repo_id: str, revision: str, repo_type: str = "model") -> str | None:
    """The commit that a branch stands at; None where there is no such branch."""

    def find() -> str | None:
        try:
            return api.repo_info(repo_id, repo_type=repo_type, revision=revision).sha
        except RevisionNotFoundError:
            return None

    return retry(find, f"Asking for {revision} of {repo_id}")


def remote_files(api: HfApi, repo_id: str, revision: str, repo_type: str = "model") -> dict[str, RepoFile] | None:
    """What a commit holds, by path, with checksums; None where there is no such commit. No file is downloaded."""
    try:
        entries = list(api.list_repo_tree(repo_id, recursive=True, revision=revision, repo_type=repo_type))
    except RevisionNotFoundError:
        return None
    except EntryNotFoundError:  # an empty repository
        return {}
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def explained(call: Callable[[], T], what: str, token: str | bool | None = None, resume: str = "") -> T:
    """What `call` returns; the client's errors become one that says what failed, why, and what to do.

    Raises:
        PublishError: for any of `CLIENT_ERRORS`.
    """
    try:
        return call()
    except PublishError:
        raise
    except CLIENT_ERRORS as error:
        raise PublishError(f"{what}: {described(error, token)}{resume}") from cause_to_show(error, token)
