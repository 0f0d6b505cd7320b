"""Trying again where the client does not.

huggingface_hub repeats the requests of an upload itself (preupload, LFS batch, PUT, verify, listing a tree: 5 times,
after 1 to 8 s, on 408, 429, 5xx and lost connections). Creating a repository, asking about it, validating a card and
the commit itself it sends once.
"""

import json
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub.utils import httpx

from hf_robust_ft.hub.errors import described, status_of

logger = logging.getLogger(__name__)

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds
TRANSIENT = (408, 429, 500, 502, 503, 504)

T = TypeVar("T")


def retry(call: Callable[[], T], what: str, done_already: Callable[[], T | None] = lambda: None) -> T:
    """What `call` returns, tried again after each of `WAITS` while the Hub does not answer or is out of order.

    Args:
        what: for the log.
        done_already: asked after a failure, since an answer can be lost on its way: what the failed call did after
            all, or None.
    """
    for wait in (*WAITS, None):
        try:
            return call()
        except Exception as error:
            if not is_transient(error):
                raise
            if (done := done_already()) is not None:
                return done
            if wait is None:
                raise
            logger.warning("%s: %s Trying again in %g s.", what, described(error), wait)
            time.sleep(wait)
    raise AssertionError("unreachable")


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a little later."""
    if (status := status_of(error)) is not None:
        return status in TRANSIENT
    # No JSON: the client reads a card's validation before it looks at the status, which may be a gateway's page.
    return isinstance(error, (httpx.TransportError, json.JSONDecodeError))
