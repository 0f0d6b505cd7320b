"""What publishing raises, and the client's errors in words: one line, what to do, never a token."""

import json

from huggingface_hub import get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hf_robust_ft.provenance.downloads import error_chain

HIDDEN = "<token>"


class PublishError(OSError):
    """Something could not be pushed, or arrived as something else. Nothing local is lost by it."""


class BackgroundPushError(PublishError):
    """Pushes during training failed; training itself is complete."""


def described(error: BaseException, token: str | bool | None = None) -> str:
    """An error of the client in one line, with what to do about it."""
    causes = list(error_chain(error))
    status = next((code for cause in causes if (code := status_of(cause)) is not None), None)
    reason = reasons(error)
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes):
        text = "the client is in offline mode (HF_HUB_OFFLINE is set): unset it to publish."
    elif any(isinstance(cause, LocalTokenNotFoundError) for cause in causes):
        text = "there is no token: run `hf auth login` or set HF_TOKEN."
    elif status == 401:
        text = f"the Hub does not accept the token ({reason}): run `hf auth login`, or set HF_TOKEN to a valid one."
    elif any(isinstance(cause, GatedRepoError) for cause in causes):
        text = f"the repository is gated, and this token has no access ({reason})."
    elif status == 403:
        text = (
            f"this token may not write there ({reason}): use a write token of an account that may, another name, or "
            "open a pull request (--pr)."
        )
    elif any(isinstance(cause, RevisionNotFoundError) for cause in causes):
        text = f"{reason}."
    elif any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        text = f"there is no such repository, or this token may not see it ({reason})."
    elif status is not None:
        text = f"the Hub answered {status} ({reason})."
    elif any(isinstance(cause, json.JSONDecodeError) for cause in causes):
        text = "the Hub's answer is no JSON; it, or a proxy before it, seems to be out of order."
    else:
        text = f"{type(causes[-1]).__name__}: {reason}."
    return without_token(text, token)


def reasons(error: BaseException) -> str:
    """What the Hub said, or else the first cause, in one line without a full stop."""
    causes = list(error_chain(error))
    said = next((text for cause in reversed(causes) if (text := getattr(cause, "server_message", None))), None)
    lines = (said or str(causes[-1]) or type(causes[-1]).__name__).splitlines()
    return "; ".join(" ".join(line.split()) for line in lines if line.strip()).rstrip(".")


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error of the client is about."""
    return getattr(error.response, "status_code", None) if isinstance(error, HfHubHTTPError) else None


def without_token(text: str, token: str | bool | None = None) -> str:
    """The text with the token in use, given or stored, taken out."""
    for secret in {token if isinstance(token, str) else None, get_token()}:
        if secret:
            text = text.replace(secret, HIDDEN)
    return text


def cause_to_show(error: BaseException, token: str | bool | None = None) -> BaseException | None:
    """`error` for `raise ... from`, unless its messages hold the token."""
    told = "\n".join(str(cause) for cause in error_chain(error))
    return error if without_token(told, token) == told else None
