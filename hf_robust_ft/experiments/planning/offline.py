"""The Hub's clients without a network, for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import datasets
from huggingface_hub import constants


@contextmanager
def offline() -> Iterator[None]:
    """Make huggingface_hub, transformers and datasets look in their caches alone.

    They read `HF_HUB_OFFLINE` when they are imported; this sets what they made of it, and puts it back.
    """
    holders = ((constants, "HF_HUB_OFFLINE"), (datasets.config, "HF_HUB_OFFLINE"))
    before = [getattr(holder, name) for holder, name in holders]
    for holder, name in holders:
        setattr(holder, name, True)
    try:
        yield
    finally:
        for (holder, name), value in zip(holders, before, strict=True):
            setattr(holder, name, value)
